# file: deploy/helm/weni-edge/templates/statefulset.yaml
# Readiness is asked of the webhook's port, which answers 404.
s#path: /readyz, port: admin#path: /readyz, port: http#
