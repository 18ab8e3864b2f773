# file: docker-compose.yml
# The configuration is mounted where Prometheus does not look.
s#prometheus\.yml:/etc/prometheus/prometheus\.yml:ro#prometheus.yml:/etc/prometheus.yml:ro#
