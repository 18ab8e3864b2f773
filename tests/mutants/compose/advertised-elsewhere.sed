# file: docker-compose.yml
# Kafka names an address that holds on this machine only to clients in the network.
s#ADVERTISED_LISTENERS: NETWORK://kafka:19092#ADVERTISED_LISTENERS: NETWORK://localhost:19092#
