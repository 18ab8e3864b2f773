# file: deploy/grafana/overview.py
# A graph is summed by a label that its series do not have.
s/rate\("weni_edge_http_requests_total", "code"\)/rate("weni_edge_http_requests_total", "status")/
