"""The rewrite: trace, plan, build, check. The package methods puts the acts together."""
