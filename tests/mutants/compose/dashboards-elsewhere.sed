# file: docker-compose.yml
# The dashboards are mounted where the provisioning does not look.
s#dashboards:/var/lib/grafana/dashboards:ro#dashboards:/etc/grafana/dashboards:ro#
