# file: deploy/helm/weni-edge/templates/networkpolicy.yaml
# The NetworkPolicy lets the edge reach no broker.
s/- \{port: \{\{ \. \}\}\}/- {port: 443}/
