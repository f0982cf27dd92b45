"""Recipes: chains of stages as YAML files, and what runs them."""
