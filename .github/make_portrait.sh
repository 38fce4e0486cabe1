#!/usr/bin/env bash
# Create README's image: matplotlib's public-domain portrait (Grace Hopper at 77), annotated by Model B.
# Run it in an environment with agegen; `agegen download` makes the detector yunet available.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
agegen predict --demo --model vgg16 --annotate "$work"
cp "$work/grace_hopper.jpg" portrait.jpg
