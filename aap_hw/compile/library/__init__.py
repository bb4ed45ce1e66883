"""From keys and widths to code, and from a network to a library: what tables and deployed networks share."""
