# file: docker-compose.yml
# The edge is killed while it still publishes.
s/stop_grace_period: 60s/stop_grace_period: 10s/
