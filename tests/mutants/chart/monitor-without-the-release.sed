# file: deploy/helm/weni-edge/templates/podmonitor.yaml
# Series do not say which release they are of.
/targetLabel: release/d
