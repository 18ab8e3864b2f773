# file: deploy/consumers/fallback-outbox/worker.py
# a user who stopped marketing after the SMS was planned gets it
s/ OR u\.errors @> '\[\{"code": 131050\}\]'//
