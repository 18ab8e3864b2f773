# file: deploy/compose/weni-edge.toml
# The edge goes to Kafka's listener for this machine, which leads a container to itself.
s/kafka:19092/kafka:9092/
