# file: deploy/consumers/fallback-outbox/worker.py
# a late delivery does not withdraw the SMS
s/s\.status_rank >= 20$/s.status_rank >= 50/
