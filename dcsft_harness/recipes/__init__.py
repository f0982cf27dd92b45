"""Recipes: chains of stages as YAML files, and their runner."""
