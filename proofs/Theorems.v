(* What is proved about the model, in one place. Every line "Print Assumptions" must answer "Closed under the global
   context": no axiom, nothing admitted. proofs/check looks at that. *)
Require Import NArith List.
Require Import Pages Invariants PagesProofs.
Import ListNotations.
Local Open Scope N_scope.

(* A machine that was switched on, and whatever happened to its pages since. *)
Inductive reachable_pages : State -> Prop :=
| at_boot : forall ram windows bits, reachable_pages (boot ram windows bits)
| and_then : forall s op, reachable_pages s -> reachable_pages (page_step s op).

Theorem every_transition_keeps_the_page_invariants : forall s op, PagesInv s -> PagesInv (page_step s op).
Proof. exact page_step_keeps. Qed.
Print Assumptions every_transition_keeps_the_page_invariants.

Theorem the_page_invariants_always_hold : forall s, reachable_pages s -> PagesInv s.
Proof. induction 1; auto using boot_inv, page_step_keeps. Qed.
Print Assumptions the_page_invariants_always_hold.

(* 5: what the host's table maps is never the core's, and never private to a VM. *)
Theorem the_host_maps_nothing_private : forall s p v g, PagesInv s ->
  state s p = Core \/ state s p = Private v g -> get (host s) p = None.
Proof. exact host_maps_nothing_private. Qed.
Print Assumptions the_host_maps_nothing_private.

(* 6: no two VMs, and no two places of one, have a page that one of them has as its own. *)
Theorem a_vms_own_page_is_in_one_place : forall s v w vm wm g h p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Protected -> get (table vm) g = Some (Ram p) ->
  get (vms s) w = Some wm -> get (table wm) h = Some (Ram p) -> v = w /\ g = h.
Proof. exact own_page_in_one_place. Qed.
Print Assumptions a_vms_own_page_is_in_one_place.

(* b: no VM has a page of the core's. *)
Theorem no_vm_maps_a_page_of_the_core : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> get (table vm) g = Some (Ram p) -> state s p <> Core.
Proof. exact no_vm_maps_core. Qed.
Print Assumptions no_vm_maps_a_page_of_the_core.

(* An ordinary VM has only what the host lent. *)
Theorem an_ordinary_vm_maps_only_what_is_lent : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Ordinary -> get (table vm) g = Some (Ram p) -> exists n, state s p = Lent n.
Proof. exact ordinary_maps_lent. Qed.
Print Assumptions an_ordinary_vm_maps_only_what_is_lent.
