# file: deploy/helm/weni-edge/templates/ingress.yaml
# The ingress leads to a port that the Service does not have.
s/port: \{name: http\}/port: {name: web}/
