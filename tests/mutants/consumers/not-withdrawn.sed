# file: deploy/consumers/fallback-outbox/worker.py
# a late delivery does not withdraw the SMS
s/u\.status_rank >= 20 OR/false OR/
