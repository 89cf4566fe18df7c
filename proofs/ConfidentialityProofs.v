(* Two states that are one for the host stay so. *)
Require Import NArith List Lia Bool.
Require Import Pages Invariants PagesProofs VmPagesProofs Noninterference NoninterferenceProofs.
Import ListNotations.
Local Open Scope N_scope.

Ltac eqb p q := let E := fresh in destruct (N.eqb_spec p q) as [E|]; [subst q|].

Definition visible (a : State) (c : Map N) : Prop :=
  forall p, host_may_access (state a p) = true -> get c p = get (contents a) p.

Lemma alike_refl : forall a, alike a a.
Proof. intro a. exists (contents a). split; [destruct a; reflexivity | auto]. Qed.

Lemma alike_trans : forall a b d, alike a b -> alike b d -> alike a d.
Proof.
  intros a b d (c & -> & V) (e & -> & W). exists e. split; [reflexivity|]. intros p H.
  rewrite <- (V p H). apply (W p). exact H.
Qed.

(* What decides reads no content. *)
Lemma blind_expect : forall a c p, expect_host (with_contents a c) p = expect_host a p. Proof. reflexivity. Qed.
Lemma blind_lend : forall a c p, may_lend (with_contents a c) p = may_lend a p. Proof. reflexivity. Qed.
Lemma blind_live : forall a c v, live (with_contents a c) v = live a v. Proof. reflexivity. Qed.
Lemma blind_kind : forall a c v k, of_kind (with_contents a c) v k = of_kind a v k. Proof. reflexivity. Qed.
Lemma blind_own : forall a c v g, own_page (with_contents a c) v g = own_page a v g. Proof. reflexivity. Qed.
Lemma blind_ram : forall a c p, is_ram (with_contents a c) p = is_ram a p. Proof. reflexivity. Qed.
Lemma blind_window : forall a c p, is_window (with_contents a c) p = is_window a p. Proof. reflexivity. Qed.
Lemma blind_state : forall a c p, state (with_contents a c) p = state a p. Proof. reflexivity. Qed.
Lemma blind_vms : forall a c, vms (with_contents a c) = vms a. Proof. reflexivity. Qed.
Lemma blind_own_pages : forall a c, own (with_contents a c) = own a. Proof. reflexivity. Qed.
Lemma blind_held : forall a c p, held (with_contents a c) p = held a p. Proof. reflexivity. Qed.

Ltac blind := rewrite ?blind_expect, ?blind_lend, ?blind_live, ?blind_kind, ?blind_own, ?blind_ram, ?blind_window,
  ?blind_state, ?blind_vms, ?blind_own_pages, ?blind_held.

(* Both do it or neither does. *)
Ltac both :=
  repeat match goal with
  | |- alike_results (match ?x with _ => _ end) _ => destruct x eqn:?; cbn [alike_results]; auto
  | |- alike_results (if ?x then _ else _) _ => destruct x eqn:?; cbn [alike_results]; auto
  end.

(* The record of [p] changes to [st], contents do not: fine where the host reaches it no more than before. *)
Lemma visible_record : forall a a' c p st, visible a c ->
  (forall q, state a' q = if p =? q then st else state a q) -> contents a' = contents a ->
  (host_may_access st = true -> host_may_access (state a p) = true) -> visible a' c.
Proof.
  intros a a' c p st V S C H q G. rewrite C. apply V. rewrite S in G. eqb p q; auto.
Qed.

(* ... and contents do, in the same way. *)
Lemma visible_write : forall a a' c p st x, visible a c ->
  (forall q, state a' q = if p =? q then st else state a q) -> contents a' = set (contents a) p x ->
  visible a' (set c p x).
Proof.
  intros a a' c p st x V S C q G. rewrite C, !get_set. rewrite S in G. destruct (N.eqb_spec p q); auto.
Qed.

Lemma map_alike : forall a c p, visible a c -> alike_results (map_page_host a p) (map_page_host (with_contents a c) p).
Proof. intros a c p V. unfold map_page_host. blind. both; (exists c; split; [reflexivity | exact V]). Qed.

Lemma store_alike : forall a c p x, visible a c -> alike_results (host_store a p x) (host_store (with_contents a c) p x).
Proof.
  intros a c p x V. unfold host_store, map_page_host. blind. destruct (is_ram a p).
  - destruct (host_may_access (state a p)); cbn [alike_results]; auto.
    exists (set c p x). split; [reflexivity|].
    apply (visible_write (with_host a (set (host a) p tt)) _ c p (state a p) x); auto.
    intro q. eqb p q; reflexivity.
  - destruct (is_window a p); cbn [alike_results]; auto. exists c. split; [reflexivity | exact V].
Qed.

Lemma donate_alike : forall a c v p, visible a c ->
  alike_results (donate_pool_page a v p) (donate_pool_page (with_contents a c) v p).
Proof.
  intros a c v p V. unfold donate_pool_page. blind. both.
  exists (remove c p). split; [reflexivity|]. intros q G.
  assert (St : forall q, state (set_vm (with_contents (set_pfn_state (clear_pfn_host a p) p Core) (remove (contents a) p)) v
      (with_given a0 (p :: given a0))) q = if p =? q then Core else state a q) by (intro; apply (state_set (clear_pfn_host a p))).
  rewrite St in G. cbn. rewrite !get_remove. destruct (N.eqb_spec p q); [discriminate | auto].
Qed.

Lemma donate_pages_alike : forall l a c v, visible a c ->
  alike_results (donate_pages a v l) (donate_pages (with_contents a c) v l).
Proof.
  induction l; cbn [donate_pages]; intros b c v V.
  - exists c. split; [reflexivity | exact V].
  - pose proof (donate_alike b c v a V) as D.
    destruct (donate_pool_page b v a), (donate_pool_page (with_contents b c) v a); cbn in D; try contradiction; auto.
    destruct D as (c' & -> & V'). exact (IHl _ _ _ V').
Qed.

Lemma clear_page_alike : forall a c v g, visible a c -> alike (clear_vm_page a v g) (clear_vm_page (with_contents a c) v g).
Proof.
  intros a c v g V. unfold clear_vm_page. blind. destruct (get (vms a) v) as [vm|]; [|exists c; split; [reflexivity | exact V]].
  set (vm' := with_table _ _).
  destruct (get (table vm) g) as [[p|p]|]; [|exists c; split; [reflexivity | exact V]..].
  destruct (kind vm).
  - exists (set c p 0). split; [reflexivity|].
    apply (visible_write a _ c p Host 0 V); [intro; apply (state_set (scrub (set_vm a v vm') p)) | reflexivity].
  - exists c. unfold lend_once_less. change (state (set_vm (with_contents a c) v vm') p) with (state (set_vm a v vm') p).
    change (state (set_vm a v vm') p) with (state a p).
    destruct (state a p) eqn:S; (split; [reflexivity|]); try exact V.
    eapply (visible_record a _ c p _ V); [intro; apply (state_set (set_vm a v vm') p) | reflexivity | rewrite S; reflexivity].
Qed.

Lemma release_alike : forall a c v, visible a c -> alike (release a v) (release (with_contents a c) v).
Proof.
  intros a c v V. unfold release. blind. destruct (get (vms a) v) as [vm|]; [|exists c; split; [reflexivity | exact V]].
  destruct (given vm) as [|p rest]; [exists c; split; [reflexivity | exact V]|].
  exists (set c p 0). split; [reflexivity|].
  apply (visible_write a _ c p Host 0 V); [intro; apply (state_set (scrub a p)) | reflexivity].
Qed.

Lemma release_all_alike : forall n a b v, alike a b -> alike (release_all n a v) (release_all n b v).
Proof.
  induction n; cbn; intros a b v A; auto. apply IHn. destruct A as (c & -> & V). exact (release_alike _ _ _ V).
Qed.

Lemma clear_range_alike : forall a c v, visible a c -> alike (clear_vm_range a v) (clear_vm_range (with_contents a c) v).
Proof.
  intros a c v V. unfold clear_vm_range. blind. destruct (get (vms a) v) as [vm|] eqn:G; [|exists c; split; [reflexivity | exact V]].
  assert (A : alike (cut_vm a v) (cut_vm (with_contents a c) v)).
  { unfold cut_vm. blind. rewrite G. exists c. split; [reflexivity | exact V]. }
  revert A. generalize (cut_vm a v) (cut_vm (with_contents a c) v).
  induction (entries (table vm)) as [|e l IH]; cbn; intros s t A; auto.
  apply IH. destruct A as (d & -> & W). exact (clear_page_alike _ _ _ _ W).
Qed.

Lemma less_alike : forall a c p s, visible a c -> (forall q, state s q = state (lend_once_less a p) q) -> contents s = contents a ->
  visible s c.
Proof.
  intros a c p s V S C q G. rewrite C. apply V. rewrite S in G. unfold lend_once_less in G.
  destruct (state a p) eqn:E; auto. rewrite state_set in G. eqb p q; auto. rewrite E. reflexivity.
Qed.

Lemma less_contents : forall a c p, lend_once_less (with_contents a c) p = with_contents (lend_once_less a p) c.
Proof. intros. unfold lend_once_less. blind. destruct (state a p); reflexivity. Qed.

Lemma more_visible : forall a c p s, visible a c -> may_lend a p = Done tt -> (forall q, state s q = state (lend_once_more a p) q) ->
  contents s = contents a -> visible s c.
Proof.
  intros a c p s V M S C. apply may_lend_ok in M as (_ & _ & M).
  eapply (visible_record a s c p _ V); [intro; rewrite S; apply (lend_more a p M) | exact C|].
  intros _. destruct M as [->|(n & -> & _)]; reflexivity.
Qed.

Lemma step_alike : forall a b op, alike a b -> ~ shows op -> alike_results (perform a op) (perform b op).
Proof.
  intros a b op (c & -> & V) NS. fold (visible a c) in V. destruct op; cbn [perform shows] in *.
  - exact (map_alike a c p V).
  - cbn. exists c. split; [reflexivity | exact V].
  - exact (store_alike a c p value V).
  - unfold assign_page_to_core. blind. both. exists c. split; [reflexivity|].
    apply (visible_record a _ c p Core V); [intro; apply (state_set (clear_pfn_host a p)) | reflexivity | discriminate].
  - unfold return_page_to_host. blind. both. exists (set c p 0). split; [reflexivity|].
    apply (visible_write a _ c p Host 0 V); [intro; apply (state_set (scrub a p)) | reflexivity].
  - unfold register_vm_table. blind. change (ia_bits (with_contents a c)) with (ia_bits a). both.
    apply (donate_pages_alike _ (set_vm a v (mkVm k (2 ^ (bits - 12)) empty false [])) c v V).
  - exact (donate_alike a c v p V).
  - unfold assign. blind. both. destruct zero.
    + exists (set c p 0). split; [reflexivity|].
      apply (visible_write a _ c p (Private v gfn) 0 V); [intro; apply (state_set (clear_pfn_host a p)) | reflexivity].
    + exists c. split; [reflexivity|].
      apply (visible_record a _ c p (Private v gfn) V); [intro; apply (state_set (clear_pfn_host a p)) | reflexivity | discriminate].
  - destruct (NS Logic.I).
  - unfold revoke_vm_page. blind. both.
    + exists c. split; [reflexivity|].
      eapply (visible_record a _ c (fst a0) _ V); [intro; apply (state_set (clear_pfn_host a (fst a0))) | reflexivity | discriminate].
    + exists c. split; [reflexivity|].
      eapply (visible_record a _ c (fst a0) _ V); [intro; apply state_set | reflexivity | intros _].
      unfold own_page in Heqr. checks; cbn; [discriminate|]. rewrite E2. reflexivity.
  - unfold hold_mailbox. blind. both. destruct a0. exists c. split; [reflexivity|].
    apply (more_visible a c p _ V Heqr); reflexivity.
  - unfold drop_mailbox. blind. both. exists c.
    rewrite less_contents. split; [reflexivity|].
    destruct (lend_less_fields a p) as (_ & _ & _ & _ & _ & _ & F7 & _). apply (less_alike a c p _ V); [reflexivity | exact F7].
  - unfold lend. blind. both. destruct a1. exists c. split; [reflexivity|].
    apply (more_visible a c p _ V Heqr0); reflexivity.
  - unfold take_back. blind. both; try (exists c; split; [reflexivity | exact V]).
    exists c. rewrite less_contents. split; [reflexivity|].
    destruct (lend_less_fields a pfn) as (_ & _ & _ & _ & _ & _ & F7 & _). apply (less_alike a c pfn _ V); [reflexivity | exact F7].
  - unfold map_vm_io. blind. both. exists c. split; [reflexivity | exact V].
  - cbn. unfold cut_vm. blind. destruct (get (vms a) v); (exists c; split; [reflexivity | exact V]).
  - exact (clear_page_alike a c v gfn V).
  - exact (clear_range_alike a c v V).
  - unfold free_vm_table. blind. both.
    pose proof (release_all_alike (length (given v0)) a (with_contents a c) v (ex_intro _ c (conj eq_refl V))) as (d & -> & W).
    exists d. split; [reflexivity | exact W].
  - unfold vm_store. blind. both. exists (set c pfn value). split; [reflexivity|].
    apply (visible_write a _ c pfn (state a pfn) value V); [|reflexivity]. intro q. eqb pfn q; reflexivity.
Qed.

Lemma load_alike : forall a b p, alike a b -> host_load a p = host_load b p.
Proof.
  intros a b p (c & -> & V). unfold host_load, map_page_host. blind.
  destruct (is_ram a p) eqn:R.
  - destruct (host_may_access (state a p)) eqn:S; auto. cbn. rewrite (V p S). reflexivity.
  - destruct (is_window a p); reflexivity.
Qed.

(* A protected VM that writes into what is its own. *)
Lemma private_store_alike : forall s v g p x s', private_view s v g p (get (contents s) p) -> vm_store s v g x = Done s' -> alike s s'.
Proof.
  intros s v g p x s' ((vm & V & _ & T) & S & _) H. unfold vm_store in H. checks. apply live_ok in E as (G & _).
  assert (D : pfn = p) by congruence. subst pfn. exists (set (contents s) p x). split; [reflexivity|]. intros q A.
  rewrite get_set. eqb p q; [|reflexivity]. rewrite S in A. discriminate.
Qed.

Lemma page_step_alike : forall a b op, alike a b -> ~ shows op -> alike (page_step a op) (page_step b op).
Proof.
  intros a b op A NS. pose proof (step_alike a b op A NS) as R. unfold page_step.
  destruct (perform a op), (perform b op); cbn in R; try contradiction; auto.
Qed.

Lemma run_alike : forall ops a b, alike a b -> Forall (fun op => ~ shows op) ops ->
  alike (fold_left page_step ops a) (fold_left page_step ops b).
Proof.
  induction ops as [|op ops IH]; cbn; intros a b A F; auto. inversion F. apply IH; auto. apply page_step_alike; auto.
Qed.
