# file: deploy/helm/weni-edge/templates/service.yaml
# The Service leads to a port that no container has.
s/targetPort: http,/targetPort: web,/
