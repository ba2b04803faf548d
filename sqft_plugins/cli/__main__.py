"""`python -m sqft_plugins.cli`, for launchers that start a module: `accelerate launch -m sqft_plugins.cli train …`."""

from sqft_plugins.cli import main

main()
