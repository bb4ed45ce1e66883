"""The walk through a program that labels every position of every tensor; `rules` says how labels pass operators."""
