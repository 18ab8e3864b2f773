# file: deploy/prometheus/rules.py
# The rejections are summed by a label that they do not have.
s/sum by \(\{RELEASE\}, source\) \(rate\(weni_edge_http_rejections_total/sum by ({RELEASE}, sources) (rate(weni_edge_http_rejections_total/
