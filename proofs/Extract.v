(* The model as an OCaml program, for the comparison with the Rust specification (tests/proved_model.rs).
   Numbers stay Coq's own, bit by bit: nothing is replaced but lists, pairs, options and truth values. *)
Require Import Extraction ExtrOcamlBasic.
Require Import NArith Pages Lifecycle.

Extraction Language OCaml.
Set Warnings "-extraction-opaque-accessed".
Extraction "model.ml" boot_lives with_memory perform step until_refused run_of assign lend take_back entries.
