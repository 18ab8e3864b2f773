# file: deploy/grafana/panels.py
# A single event is not seen in a day's view.
s/"showPoints": "auto"/"showPoints": "never"/
