# file: deploy/helm/weni-edge/templates/networkpolicy.yaml
# The NetworkPolicy lets no names be resolved.
s/\{port: 53, protocol: UDP\}, //
