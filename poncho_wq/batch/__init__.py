"""Batches of jobs without a manager to write: one model, one scheduler, one journal; front ends are thin.

``model`` says what a batch is, ``scheduler`` decides what runs next, ``journal`` remembers, ``job_runner`` runs on the
worker, and ``manager`` is the loop that brings them together over an engine.
"""
