# file: deploy/consumers/fallback-outbox/worker.py
# only the first error of a failed message counts
s/u\.errors @> '\[\{"fault": "recipient"\}\]'/u.errors->0->>'fault' = 'recipient'/
