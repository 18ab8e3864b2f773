# file: deploy/consumers/python-postgres/consumer.py
# the consumer goes on from the offsets in Kafka
s/, on_assign=on_assign//
