"""The image-classification wing: pre-trained vision transformers tuned with the prompt experts of the core."""
