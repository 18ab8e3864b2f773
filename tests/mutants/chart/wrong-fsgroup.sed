# file: deploy/helm/weni-edge/templates/statefulset.yaml
# The volume belongs to a group that the edge is not in.
s/fsGroup: 65532/fsGroup: 1000/
