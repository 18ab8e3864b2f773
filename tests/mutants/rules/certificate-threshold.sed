# file: deploy/prometheus/rules.py
# The certificate's ticket is opened 14 hours before it expires, not 14 days.
s/14 \* 86400/14 * 3600/
