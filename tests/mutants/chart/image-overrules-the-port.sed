# file: deploy/helm/weni-edge/templates/statefulset.yaml
# The admin port is the image's, whatever admin.listen says.
/WENI_EDGE__ADMIN__LISTEN/d
