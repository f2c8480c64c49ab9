"""Kernel sources: topic.h is the formula for CPU and GPU, topic.pyx the CPU loops. Ships as compress._csrc."""
