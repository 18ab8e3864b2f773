# file: docker-compose.yml
# The rules are mounted where Prometheus does not look.
s#:/etc/prometheus/weni-edge\.rules\.yml#:/etc/prometheus/rules.yml#
