# file: deploy/prometheus/rules.py
# An edge that is down opens a ticket instead of paging.
s/"WeniEdgeDown", "page"/"WeniEdgeDown", "ticket"/
