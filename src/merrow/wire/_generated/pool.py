"""The descriptor pool of the generated messages. Written by protos/generate.py; do not edit."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
