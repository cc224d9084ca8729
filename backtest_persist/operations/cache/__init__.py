"""The ids in Redis, compared with the documents in MongoDB and set from them."""
