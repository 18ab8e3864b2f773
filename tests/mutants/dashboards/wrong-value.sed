# file: deploy/grafana/business.py
# The number of failed messages counts a status that there is not.
s/total\("Failed", "failed"\)/total("Failed", "error")/
