# file: deploy/grafana/provisioning/datasources/prometheus.yml
# Grafana looks for Prometheus on a port where it is not.
s/prometheus:9090/prometheus:9091/
