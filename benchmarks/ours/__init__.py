"""The same work through this project; these programs run in the project's own virtual environment."""
