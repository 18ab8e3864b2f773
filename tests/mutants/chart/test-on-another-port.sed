# file: deploy/helm/weni-edge/templates/tests/healthcheck.yaml
# helm test asks the webhook's port.
s/\{\{ include "weni-edge\.adminPort" \$ \}\}/8080/
