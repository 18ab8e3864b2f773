# file: deploy/helm/weni-edge/templates/tests/healthcheck.yaml
# helm test asks the default port, whatever admin.listen says.
s/\{\{ include "weni-edge\.adminPort" \$ \}\}/9090/
