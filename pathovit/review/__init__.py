"""The pathologist's page: a folder of results is read, decided on and corrected. It shows what was made, and runs no model."""
