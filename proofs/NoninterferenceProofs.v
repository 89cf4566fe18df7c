(* The proofs of integrity and confidentiality. *)
Require Import NArith List Lia Bool.
Require Import Pages Invariants PagesProofs VmPagesProofs Noninterference.
Import ListNotations.
Local Open Scope N_scope.

(* ---- integrity ---------------------------------------------------------------------------------------------------- *)

Lemma keeps_refl : forall v s, keeps_view v s s.
Proof. split; auto. Qed.

Lemma keeps_trans : forall v a b c, keeps_view v a b -> keeps_view v b c -> keeps_view v a c.
Proof. intros v a b c [A B] [C D]. split; eauto. Qed.

(* A transition changes the record and the content of one page that is not private to [v], and no leaf of [v] goes. *)
Lemma keeps_by : forall v s s' p, 
  (forall g p, has_page s v g p -> has_page s' v g p) ->
  (forall q, q <> p -> state s' q = state s q /\ get (contents s') q = get (contents s) q) ->
  (forall g, state s p <> Private v g) -> keeps_view v s s'.
Proof.
  intros v s s' p T Q N. split; auto. intros g q c (H & S & C).
  assert (n : q <> p) by (intros ->; exact (N g S)). destruct (Q q n) as [A B].
  split; [auto | split; congruence].
Qed.

Lemma has_same : forall v s s', vms s' = vms s -> forall g p, has_page s v g p -> has_page s' v g p.
Proof. intros v s s' E g p (vm & H). exists vm. rewrite E. exact H. Qed.

(* VM [w]'s place changes: no leaf of a protected VM goes. *)
Lemma has_vm : forall v s s' w vm vm', get (vms s) w = Some vm -> vms s' = set (vms s) w vm' -> kind vm' = kind vm ->
  (w = v -> kind vm = Protected -> forall g p, get (table vm) g = Some (Ram p) -> get (table vm') g = Some (Ram p)) ->
  forall g p, has_page s v g p -> has_page s' v g p.
Proof.
  intros v s s' w vm vm' W E K T g p (x & V & Kx & Tx). unfold has_page. rewrite E, get_set. destruct (N.eqb_spec w v) as [Ev|].
  - subst w. rewrite W in V. injection V as <-. exists vm'. repeat split; [congruence | auto].
  - exists x. auto.
Qed.

Lemma record_and_content : forall s s' p st,
  (forall q, state s' q = if p =? q then st else state s q) ->
  (forall q, q <> p -> get (contents s') q = get (contents s) q) ->
  forall q, q <> p -> state s' q = state s q /\ get (contents s') q = get (contents s) q.
Proof. intros s s' p st S C q n. rewrite S. destruct (N.eqb_spec p q); [congruence | auto]. Qed.

Ltac other := intros q n; cbn; rewrite ?get_set, ?get_remove;
  match goal with |- context [?a =? ?b] => destruct (N.eqb_spec a b); congruence | _ => auto end.

Lemma map_host_view : forall v s p s', map_page_host s p = Done s' -> keeps_view v s s'.
Proof.
  intros v s p s' H. unfold map_page_host in H.
  assert (E : s' = with_host s (set (host s) p tt)) by (checks; reflexivity). subst s'.
  split; auto.
Qed.

Lemma host_store_view : forall v s p x s', host_store s p x = Done s' -> keeps_view v s s'.
Proof.
  intros v s p x s' H. unfold host_store in H. destruct (map_page_host s p) as [t|] eqn:M; [|discriminate].
  pose proof (map_host_view v _ _ _ M) as K. injection H as <-. destruct (is_ram s p) eqn:R; auto.
  unfold map_page_host in M. rewrite R in M. checks.
  apply (keeps_by v s _ p).
  - apply has_same. reflexivity.
  - intros q n. split; [reflexivity|]. cbn. rewrite get_set. destruct (N.eqb_spec p q); congruence.
  - intros g S. rewrite S in E. discriminate.
Qed.

Lemma to_core_view : forall v s p s', assign_page_to_core s p = Done s' -> keeps_view v s s'.
Proof.
  intros v s p s' H. unfold assign_page_to_core in H. checks. apply expect_host_ok in E as (_ & _ & S).
  apply (keeps_by v s _ p); [apply has_same; reflexivity | | congruence].
  apply (record_and_content s _ p Core); [intro; apply (state_set (clear_pfn_host s p)) | reflexivity].
Qed.

Lemma to_host_view : forall v s p s', PagesInv s -> return_page_to_host s p = Done s' -> keeps_view v s s'.
Proof.
  intros v s p s' I H. unfold return_page_to_host in H. checks.
  assert (S : state s p = Core).
  { pose proof (core_count _ I p) as C. unfold claims, owned in C. rewrite E0 in C. destruct (state s p); cbn [core_times] in C; auto; lia. }
  apply (keeps_by v s _ p); [apply has_same; reflexivity | | congruence].
  apply (record_and_content s _ p Host); [intro; apply (state_set (scrub s p)) | other].
Qed.

Lemma donate_view : forall v s w p s', donate_pool_page s w p = Done s' -> keeps_view v s s'.
Proof.
  intros v s w p s' H. unfold donate_pool_page in H. checks. apply live_ok in E as (V & _). apply expect_host_ok in E0 as (_ & _ & S).
  apply (keeps_by v s _ p); [| | congruence].
  - eapply has_vm; [exact V | reflexivity | reflexivity | auto].
  - apply (record_and_content s _ p Core); [intro; apply (state_set (clear_pfn_host s p)) | other].
Qed.

Lemma donate_pages_view : forall v l s w s', donate_pages s w l = Done s' -> keeps_view v s s'.
Proof.
  induction l; cbn; intros s w s' H; checks; [apply keeps_refl|].
  eapply keeps_trans; [eapply donate_view; eauto | eauto].
Qed.

Lemma register_view : forall v s w k bits root s', register_vm_table s w k bits root = Done s' -> keeps_view v s s'.
Proof.
  intros v s w k bits root s' H. unfold register_vm_table in H. checks.
  eapply keeps_trans; [|eapply donate_pages_view; exact H]. clear H.
  set (t := set_vm _ _ _).
  assert (T : forall g p, has_page s v g p -> has_page t v g p).
  { intros g p (x & V & X). exists x. cbn. rewrite get_set. destruct (N.eqb_spec w v); [congruence | auto]. }
  split; auto. intros g p c (Hp & X). split; auto.
Qed.

Lemma assign_view : forall v s w g p zero s', assign s w g p zero = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g p zero s' H. unfold assign in H. checks.
  apply of_kind_ok in E as (V & K & _). apply expect_host_ok in E0 as (_ & _ & S). apply prepare_ok in E1 as (_ & Free).
  apply (keeps_by v s _ p); [| | congruence].
  - eapply has_vm; [exact V | destruct zero; reflexivity | reflexivity |].
    intros _ _ h q T. cbn. rewrite get_set. destruct (N.eqb_spec g h); congruence.
  - apply (record_and_content s _ p (Private w g)).
    + intro. rewrite <- (state_set (clear_pfn_host s p)). destruct zero; reflexivity.
    + destruct zero; [other | reflexivity].
Qed.

Lemma own_page_is : forall s w g p n, PagesInv s -> own_page s w g = Done (p, n) -> forall v h, v <> w -> state s p <> Private v h.
Proof.
  intros s w g p n I H v h D S. destruct (own_page_ok _ _ _ _ _ I H) as [[X _]|X]; rewrite X in S; congruence.
Qed.

Lemma grant_view : forall v s w g s', PagesInv s -> w <> v -> grant_vm_page s w g = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g s' I D H. unfold grant_vm_page in H. checks. destruct a as [p n]. cbn in *.
  apply (keeps_by v s _ p); [apply has_same; reflexivity | | intros h; apply (own_page_is s w g p n I E); congruence].
  eapply record_and_content; [intro; apply state_set | reflexivity].
Qed.

Lemma revoke_view : forall v s w g s', PagesInv s -> w <> v -> revoke_vm_page s w g = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g s' I D H. unfold revoke_vm_page in H. destruct (own_page s w g) as [[p n]|] eqn:E; try discriminate. cbn in H.
  destruct (n =? 0); try discriminate.
  destruct (n =? 1); injection H as <-;
    (apply (keeps_by v s _ p); [apply has_same; reflexivity | | intros h; apply (own_page_is s w g p n I E); congruence]).
  - eapply record_and_content; [intro; apply (state_set (clear_pfn_host s p)) | reflexivity].
  - eapply record_and_content; [intro; apply state_set | reflexivity].
Qed.

Lemma less_others : forall s p q, q <> p -> state (lend_once_less s p) q = state s q.
Proof.
  intros s p q n. unfold lend_once_less. destruct (state s p); auto. rewrite state_set. destruct (N.eqb_spec p q); congruence.
Qed.

Lemma may_lend_private : forall s p u v g, may_lend s p = Done u -> state s p <> Private v g.
Proof. intros s p u v g H S. apply may_lend_ok in H as (_ & _ & [X|(n & X & _)]); congruence. Qed.

Lemma more_others : forall s p q, q <> p -> state (lend_once_more s p) q = state s q.
Proof.
  intros s p q n. unfold lend_once_more. rewrite state_set. destruct (N.eqb_spec p q); congruence.
Qed.

Lemma hold_view : forall v s p s', hold_mailbox s p = Done s' -> keeps_view v s s'.
Proof.
  intros v s p s' H. unfold hold_mailbox in H. checks.
  apply (keeps_by v s _ p); [apply has_same; reflexivity | | intros g; exact (may_lend_private _ _ _ _ _ E)].
  intros q n. split; [exact (more_others s p q n) | reflexivity].
Qed.

Lemma drop_view : forall v s p s', PagesInv s -> drop_mailbox s p = Done s' -> keeps_view v s s'.
Proof.
  intros v s p s' I H. unfold drop_mailbox in H. checks. apply N.eqb_neq in E0.
  destruct (lend_less_fields s p) as (_ & _ & _ & F4 & _ & _ & F7 & _).
  apply (keeps_by v s _ p).
  - apply has_same. exact F4.
  - intros q n. split; [exact (less_others s p q n)|]. cbn. rewrite F7. reflexivity.
  - intros g S. pose proof (lent_count _ I p) as L. unfold loans in L. rewrite S in L. cbn [lent_times] in L. lia.
Qed.

Lemma lend_view : forall v s w g p s', lend s w g p = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g p s' H. unfold lend in H. checks. apply of_kind_ok in E as (V & K & _).
  apply (keeps_by v s _ p).
  - eapply has_vm; [exact V | reflexivity | reflexivity | intros; congruence].
  - intros q n. split; [exact (more_others s p q n) | reflexivity].
  - intros h. exact (may_lend_private _ _ _ _ _ E0).
Qed.

Lemma ordinary_leaf : forall s w vm g p v h, PagesInv s -> get (vms s) w = Some vm -> kind vm = Ordinary ->
  get (table vm) g = Some (Ram p) -> state s p <> Private v h.
Proof. intros s w vm g p v h I V K T S. destruct (ordinary_maps_lent _ _ _ _ _ I V K T). congruence. Qed.

Lemma take_back_view : forall v s w g s', PagesInv s -> take_back s w g = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g s' I H. unfold take_back in H. checks; try apply keeps_refl. apply of_kind_ok in E as (V & K & _).
  destruct (lend_less_fields s pfn) as (_ & _ & _ & F4 & _ & _ & F7 & _).
  apply (keeps_by v s _ pfn).
  - eapply (has_vm v s _ w a); [exact V | cbn; rewrite F4; reflexivity | reflexivity | intros; congruence].
  - intros q n. split; [exact (less_others s pfn q n)|]. cbn. rewrite F7. reflexivity.
  - intro h. exact (ordinary_leaf _ _ _ _ _ _ _ I V K E0).
Qed.

Lemma map_io_view : forall v s w g p s', map_vm_io s w g p = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g p s' H. unfold map_vm_io in H. checks. apply live_ok in E as (V & _). apply prepare_ok in E1 as (_ & Free).
  set (t := set_vm _ _ _).
  assert (T : forall h q, has_page s v h q -> has_page t v h q).
  { eapply has_vm; [exact V | reflexivity | reflexivity |]. intros _ _ h q T. cbn. rewrite get_set.
    destruct (N.eqb_spec g h); congruence. }
  split; auto. intros h q c (A & B & C). split; auto.
Qed.

Lemma cut_view : forall v s w, keeps_view v s (cut_vm s w).
Proof.
  intros v s w. unfold cut_vm. destruct (get (vms s) w) eqn:W; [|apply keeps_refl].
  set (t := set_vm _ _ _).
  assert (T : forall h q, has_page s v h q -> has_page t v h q) by (eapply has_vm; [exact W | reflexivity | reflexivity | auto]).
  split; auto. intros h q c (A & B & C). split; auto.
Qed.

Lemma clear_page_view : forall v s w g, PagesInv s -> w <> v -> keeps_view v s (clear_vm_page s w g).
Proof.
  intros v s w g I D. unfold clear_vm_page. destruct (get (vms s) w) as [vm|] eqn:W; [|apply keeps_refl].
  set (vm' := with_table _ _). set (s1 := set_vm _ _ _).
  assert (T : forall t, vms t = vms s1 -> forall h q, has_page s v h q -> has_page t v h q).
  { intros t Et. eapply (has_vm v s t w vm vm' W); [rewrite Et; reflexivity | reflexivity | intros; congruence]. }
  assert (Plain : keeps_view v s s1).
  { split; [exact (T s1 eq_refl)|]. intros h q c (A & B & C). split; [exact (T s1 eq_refl h q A) | split; assumption]. }
  destruct (get (table vm) g) as [[p|p]|] eqn:Lf; auto. destruct (kind vm) eqn:K.
  - apply (keeps_by v s _ p).
    + apply T. reflexivity.
    + apply (record_and_content s _ p Host); [intro; apply (state_set (scrub s1 p)) | other].
    + intros h S. pose proof (vm_iso _ I _ _ _ _ W K Lf) as B. rewrite S in B. destruct B. congruence.
  - destruct (lend_less_fields s1 p) as (_ & _ & _ & F4 & _ & _ & F7 & _).
    apply (keeps_by v s _ p).
    + apply T. exact F4.
    + intros q n. split; [exact (less_others s1 p q n)|]. rewrite F7. reflexivity.
    + intro h. exact (ordinary_leaf _ _ _ _ _ _ _ I W K Lf).
Qed.

Lemma clear_range_view : forall v s w, PagesInv s -> w <> v -> keeps_view v s (clear_vm_range s w).
Proof.
  intros v s w I D. unfold clear_vm_range. destruct (get (vms s) w) as [vm|]; [|apply keeps_refl].
  apply (keeps_trans v s (cut_vm s w)); [apply cut_view|]. apply (cut_vm_keeps s w) in I. revert I. generalize (cut_vm s w).
  induction (entries (table vm)) as [|e l IH]; cbn; intros t I; [apply keeps_refl|].
  apply (keeps_trans v t (clear_vm_page t w (fst e))); [exact (clear_page_view v t w (fst e) I D)|].
  exact (IH _ (clear_vm_page_keeps t w (fst e) I)).
Qed.

Lemma release_view : forall v s w, PagesInv s -> keeps_view v s (release s w).
Proof.
  intros v s w I. unfold release. destruct (get (vms s) w) as [vm|] eqn:W; [|apply keeps_refl].
  destruct (given vm) as [|p rest] eqn:G; [apply keeps_refl|].
  apply (keeps_by v s _ p).
  - eapply has_vm; [exact W | reflexivity | reflexivity | auto].
  - apply (record_and_content s _ p Host); [intro; apply (state_set (scrub s p)) | other].
  - intros h S. pose proof (core_count _ I p) as C. pose proof (total_at (vm_claims p) _ _ _ W) as X. unfold claims in C.
    unfold vm_claims at 1 in X. rewrite G in X. cbn [count] in X. rewrite N.eqb_refl in X. rewrite S in C. cbn [core_times] in C. lia.
Qed.

Lemma release_all_view : forall v n s w, PagesInv s -> keeps_view v s (release_all n s w).
Proof.
  induction n; cbn; intros s w I; [apply keeps_refl|].
  eapply keeps_trans; [apply release_view, I | apply IHn, release_keeps, I].
Qed.

Lemma free_view : forall v s w s', PagesInv s -> w <> v -> free_vm_table s w = Done s' -> keeps_view v s s'.
Proof.
  intros v s w s' I D H. unfold free_vm_table in H. checks.
  set (t := release_all _ _ _). apply (keeps_trans v s t); [apply release_all_view, I|].
  assert (T : forall h q, has_page t v h q -> has_page (with_vms t (remove (vms t) w)) v h q).
  { intros h q (x & V & X). exists x. cbn. rewrite get_remove. destruct (N.eqb_spec w v); [congruence | auto]. }
  split; auto. intros h q c (A & B & C). split; auto.
Qed.

Lemma vm_store_view : forall v s w g x s', PagesInv s -> w <> v -> vm_store s w g x = Done s' -> keeps_view v s s'.
Proof.
  intros v s w g x s' I D H. unfold vm_store in H. checks. apply live_ok in E as (W & _).
  apply (keeps_by v s _ pfn).
  - apply has_same. reflexivity.
  - intros q n. split; [reflexivity|]. cbn. rewrite get_set. destruct (N.eqb_spec pfn q); congruence.
  - intros h S. destruct (kind a) eqn:K.
    + pose proof (vm_iso _ I _ _ _ _ W K E0) as B. rewrite S in B. destruct B. congruence.
    + exact (ordinary_leaf _ _ _ _ _ _ _ I W K E0 S).
Qed.

Lemma step_view : forall v s op, PagesInv s -> ~ of_vm v op -> keeps_view v s (page_step s op).
Proof.
  intros v s op I O. unfold page_step. destruct (perform s op) as [s'|] eqn:H; [|apply keeps_refl].
  destruct op; cbn [perform of_vm] in *.
  - exact (map_host_view v _ _ _ H).
  - injection H as <-. split; auto.
  - exact (host_store_view v _ _ _ _ H).
  - exact (to_core_view v _ _ _ H).
  - exact (to_host_view v _ _ _ I H).
  - exact (register_view v _ _ _ _ _ _ H).
  - exact (donate_view v _ _ _ _ H).
  - exact (assign_view v _ _ _ _ _ _ H).
  - exact (grant_view v _ _ _ _ I O H).
  - exact (revoke_view v _ _ _ _ I O H).
  - exact (hold_view v _ _ _ H).
  - exact (drop_view v _ _ _ I H).
  - exact (lend_view v _ _ _ _ _ H).
  - exact (take_back_view v _ _ _ _ I H).
  - exact (map_io_view v _ _ _ _ _ H).
  - injection H as <-. apply cut_view.
  - injection H as <-. apply clear_page_view; auto.
  - injection H as <-. apply clear_range_view; auto.
  - exact (free_view v _ _ _ I O H).
  - exact (vm_store_view v _ _ _ _ _ I O H).
Qed.

(* ---- what comes back is zero --------------------------------------------------------------------------------------- *)

Definition safe (v g p : N) (s : State) : Prop :=
  state s p = Private v g \/ state s p = Host /\ get (contents s) p = Some 0.

Lemma clear_page_safe : forall v g p s w h, PagesInv s -> safe v g p s -> safe v g p (clear_vm_page s w h).
Proof.
  intros v g p s w h I S. unfold clear_vm_page. destruct (get (vms s) w) as [vm|] eqn:W; auto.
  set (s1 := set_vm _ _ _). destruct (get (table vm) h) as [[q|q]|] eqn:Lf; auto. destruct (kind vm) eqn:K.
  - unfold safe. rewrite state_set. change (state (scrub s1 q) p) with (state s p). cbn. rewrite get_set.
    destruct (N.eqb_spec q p); auto.
  - destruct (lend_less_fields s1 q) as (_ & _ & _ & _ & _ & _ & F7 & _).
    destruct (ordinary_maps_lent _ _ _ _ _ I W K Lf) as [n L].
    assert (D : p <> q) by (intros ->; destruct S as [S|[S _]]; congruence).
    unfold safe. rewrite F7, (less_others s1 q p D). exact S.
Qed.

Lemma clear_range_safe : forall v g p s w, PagesInv s -> safe v g p s -> safe v g p (clear_vm_range s w).
Proof.
  intros v g p s w I S. unfold clear_vm_range. destruct (get (vms s) w) as [vm|] eqn:W; auto.
  assert (S' : safe v g p (cut_vm s w)) by (unfold cut_vm; rewrite W; exact S).
  apply (cut_vm_keeps s w) in I. revert I S'. generalize (cut_vm s w).
  induction (entries (table vm)) as [|e l IH]; cbn; intros t I S'; auto.
  exact (IH _ (clear_vm_page_keeps t w (fst e) I) (clear_page_safe _ _ _ _ _ _ I S')).
Qed.

Lemma private_goes : forall s op v g p, PagesInv s -> state s p = Private v g -> let s' := page_step s op in
  state s' p = Private v g \/
  state s' p = Host /\ get (contents s') p = Some 0 \/
  op = GrantVmPage v g /\ state s' p = Shared v g 1.
Proof.
  intros s op v g p I S s'. assert (B : belongs (state s p) v g) by (rewrite S; cbn; auto).
  pose proof (placed _ I _ _ _ B) as (vm & V & K & T).
  assert (Or : of_vm v op \/ ~ of_vm v op) by (destruct op; cbn; auto; destruct (N.eq_dec v0 v); auto).
  destruct Or as [O|O].
  2:{ left. destruct (step_view v s op I O) as [_ X]. destruct (X g p (get (contents s) p)) as (_ & Y & _); auto.
      split; [exists vm; auto | auto]. }
  assert (R : forall t : State, safe v g p t -> state t p = Private v g \/
    state t p = Host /\ get (contents t) p = Some 0 \/ op = GrantVmPage v g /\ state t p = Shared v g 1) by (unfold safe; tauto).
  assert (S0 : safe v g p s) by (left; exact S).
  unfold s', page_step. destruct (perform s op) as [t|] eqn:H; [|auto].
  destruct op; cbn [perform of_vm] in *; try contradiction; subst.
  - unfold grant_vm_page in H. checks. destruct a as [q n]. cbn in *. rewrite state_set.
    destruct (N.eqb_spec q p) as [->|]; auto. right. right.
    destruct (own_page_ok _ _ _ _ _ I E) as [[X ->]|X]; [rewrite X in S; injection S as <-; auto | congruence].
  - unfold revoke_vm_page in H. destruct (own_page s v gfn) as [[q n]|] eqn:E; try discriminate. cbn in H.
    destruct (N.eqb_spec n 0); try discriminate.
    destruct (own_page_ok _ _ _ _ _ I E) as [[_ X]|X]; [contradiction|].
    assert (D : q <> p) by (intros ->; congruence).
    left. destruct (n =? 1); injection H as <-; rewrite state_set; destruct (N.eqb_spec q p); auto; contradiction.
  - injection H as <-. apply R. unfold cut_vm. rewrite V. exact S0.
  - injection H as <-. apply R, clear_page_safe; auto.
  - injection H as <-. apply R, clear_range_safe; auto.
  - unfold free_vm_table in H. rewrite V in H. checks. pose proof (is_empty_get _ E g). congruence.
  - unfold vm_store in H. checks. left. exact S.
Qed.
