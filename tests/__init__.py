"""Tests, a level each before what they need (ARCHITECTURE.md)."""
