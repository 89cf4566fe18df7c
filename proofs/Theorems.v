(* What is proved about the model, in one place. Every line "Print Assumptions" must answer "Closed under the global
   context": no axiom, nothing admitted. proofs/check looks at that. *)
Require Import NArith List.
Require Import Pages Lifecycle Invariants Noninterference.
Require Import PagesProofs VmPagesProofs NoninterferenceProofs ConfidentialityProofs LifeProofs LifeInvProofs MachineProofs.
Import ListNotations.
Local Open Scope N_scope.

(* ---- the invariants hold ------------------------------------------------------------------------------------------- *)

Theorem every_transition_keeps_the_page_invariants : forall s op, PagesInv s -> PagesInv (page_step s op).
Proof. exact page_step_keeps. Qed.
Print Assumptions every_transition_keeps_the_page_invariants.

Theorem every_call_keeps_the_page_invariants : forall s call, PagesInv (memory s) -> PagesInv (memory (fst (step s call))).
Proof. exact life_step_pages. Qed.
Print Assumptions every_call_keeps_the_page_invariants.

Theorem every_call_keeps_the_invariants_of_lives : forall s call, LifeInv s -> LifeInv (fst (step s call)).
Proof. exact life_step_keeps. Qed.
Print Assumptions every_call_keeps_the_invariants_of_lives.

(* Whatever host and VMs do, from a machine that was switched on. *)
Theorem all_invariants_always_hold : forall s, reachable s -> PagesInv (memory s) /\ LifeInv s.
Proof. exact reachable_inv. Qed.
Print Assumptions all_invariants_always_hold.

(* ---- what follows for pages ---------------------------------------------------------------------------------------- *)

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

(* A private page stays private, or its VM shares it, or it is the host's again and zero. *)
Theorem a_private_page_comes_back_zero_or_is_shared_by_its_vm : forall s op v g p, PagesInv s -> state s p = Private v g ->
  let s' := page_step s op in
  state s' p = Private v g \/
  state s' p = Host /\ get (contents s') p = Some 0 \/
  op = GrantVmPage v g /\ state s' p = Shared v g 1.
Proof. exact private_goes. Qed.
Print Assumptions a_private_page_comes_back_zero_or_is_shared_by_its_vm.

(* D3, A7: calls take memory from a VM only while it is off and none of its vCPUs runs; what is the VM's own doing no call does. *)
Theorem calls_change_memory_only_as_allowed : forall s call, exists ops,
  memory (fst (step s call)) = fold_left page_step ops (memory s) /\ Forall (allowed s) ops.
Proof. exact step_ops. Qed.
Print Assumptions calls_change_memory_only_as_allowed.

(* ---- a protected VM's private view --------------------------------------------------------------------------------- *)

(* Integrity, of pages: what others do leaves every page of a protected VM where it is, and what is private as it is. *)
Theorem what_others_do_to_pages_leaves_a_vms_view : forall v s op, PagesInv s -> ~ of_vm v op ->
  keeps_view v s (page_step s op).
Proof. exact step_view. Qed.
Print Assumptions what_others_do_to_pages_leaves_a_vms_view.

(* Integrity, of the whole machine: as long as a VM is not off, or still runs, nothing that host, core or other VMs do changes what it
   sees of its own: pages, their content, registers. *)
Theorem what_others_do_leaves_a_vms_private_view : forall s e v, reachable s -> alive s v -> ~ own_doing v e ->
  keeps_view v (memory s) (memory (happen s e)) /\ forall c, registers (happen s e) v c = registers s v c.
Proof. intros s e v R. exact (happen_view s e v (reachable_inv s R)). Qed.
Print Assumptions what_others_do_leaves_a_vms_private_view.

(* Confidentiality: two machines that differ only in what is private stay so, whatever happens that is not a VM's sharing; *)
Theorem what_is_private_makes_no_difference_to_the_host : forall s t e, same_for_host s t ->
  (forall v g, e <> VmShares v g) -> same_for_host (happen s e) (happen t e).
Proof. exact happen_same. Qed.
Print Assumptions what_is_private_makes_no_difference_to_the_host.

(* every call of the host gives the same answer in both; *)
Theorem every_answer_is_the_same : forall s t call, same_for_host s t -> snd (step s call) = snd (step t call).
Proof. intros s t call S. apply life_step_same, S. Qed.
Print Assumptions every_answer_is_the_same.

(* and the host reads the same, wherever it may read. *)
Theorem the_host_reads_the_same : forall s t p, same_for_host s t -> host_load (memory s) p = host_load (memory t) p.
Proof. intros s t p (A & _). apply load_alike, A. Qed.
Print Assumptions the_host_reads_the_same.

(* Such a difference is all that a VM makes by writing into what is private, *)
Theorem a_private_store_is_seen_by_nobody : forall s v g p x, private_view (memory s) v g p (get (contents (memory s)) p) ->
  same_for_host s (happen s (VmStores v g x)).
Proof. exact own_store_same. Qed.
Print Assumptions a_private_store_is_seen_by_nobody.

(* and by what it computes: registers are abstract here, and no transition reads them. *)
Theorem what_a_vm_computes_is_seen_by_nobody : forall s v c r, same_for_host s (happen s (VmComputes v c r)).
Proof. exact compute_same. Qed.
Print Assumptions what_a_vm_computes_is_seen_by_nobody.
