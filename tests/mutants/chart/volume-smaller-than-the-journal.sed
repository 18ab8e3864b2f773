# file: deploy/helm/weni-edge/values.yaml
# The volume is full before the journal is.
s/size: 16Gi/size: 8Gi/
