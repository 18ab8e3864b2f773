# file: deploy/consumers/python-postgres/consumer.py
# the consumer goes on from the offsets in Kafka
s/p\.offset = stored.*/pass/
s/"auto.offset.reset": "error"/"auto.offset.reset": "earliest"/
