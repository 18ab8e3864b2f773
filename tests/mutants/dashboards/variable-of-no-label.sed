# file: deploy/grafana/panels.py
# The variable of the topics asks for a label that its series do not have.
s/(publish_records_total\{\{\{RELEASE\}\}\}), topic\)/\1, topics)/
