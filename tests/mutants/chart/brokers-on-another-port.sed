# file: deploy/helm/weni-edge/values.yaml
# The ports that the NetworkPolicy opens are not the brokers'.
s/kafkaPorts: \[9092\]/kafkaPorts: [9094]/
