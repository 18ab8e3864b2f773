# file: deploy/prometheus/rules.py
# An alert's text shows a label that the aggregation has dropped.
s/"Calls for source \{\{ \$labels\.source \}\}/"Calls for source {{ $labels.instance }}/
