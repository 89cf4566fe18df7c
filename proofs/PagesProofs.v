(* Every transition of Pages.v keeps the invariants. *)
Require Import NArith List Lia Bool.
Require Import Pages Invariants.
Import ListNotations.
Local Open Scope N_scope.

Lemma state_set : forall s p st q, state (set_pfn_state s p st) q = if p =? q then st else state s q.
Proof. intros. unfold state, set_pfn_state, with_pages; cbn. destruct st; keys; reflexivity. Qed.

(* Opens the definition of a transition that succeeded: one hypothesis for each check. *)
Ltac checks :=
  repeat match goal with
  | H : Done _ = Done _ |- _ => injection H as <- || injection H as <- <-
  | H : Refused _ = Done _ |- _ => discriminate H
  | H : match ?x with _ => _ end = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  | H : (if ?x then _ else _) = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  end.

Lemma expect_host_ok : forall s p u, expect_host s p = Done u -> p <> 0 /\ is_ram s p = true /\ state s p = Host.
Proof. unfold expect_host. intros. checks. apply N.eqb_neq in E. auto. Qed.

Lemma may_lend_ok : forall s p u, may_lend s p = Done u ->
  p <> 0 /\ is_ram s p = true /\ (state s p = Host \/ exists n, state s p = Lent n /\ n < 255).
Proof.
  unfold may_lend. intros. checks; apply N.eqb_neq in E; repeat split; auto.
  right. exists times. apply N.ltb_lt in E2. auto.
Qed.

Lemma live_ok : forall s v vm, live s v = Done vm -> get (vms s) v = Some vm /\ cut vm = false.
Proof. unfold live. intros. checks. auto. Qed.

Lemma of_kind_ok : forall s v k vm, of_kind s v k = Done vm -> get (vms s) v = Some vm /\ kind vm = k /\ cut vm = false.
Proof.
  unfold of_kind. intros. checks. apply live_ok in E as []. repeat split; auto.
  destruct (kind a), k; auto; discriminate.
Qed.

Lemma prepare_ok : forall vm g u, prepare vm g = Done u -> g < size vm /\ get (table vm) g = None.
Proof. unfold prepare. intros. checks. apply N.ltb_lt in E. auto. Qed.

(* The numbers of an invariant at page [q]. *)
Definition numbers (s : State) (q : N) : Prop :=
  loans s q = lent_times (state s q) /\ claims s q = core_times (state s q) /\ times_ok (state s q).

Lemma inv_numbers : forall s, PagesInv s -> forall q, numbers s q.
Proof. intros s I q. split; [apply I | split; apply I]. Qed.

(* A change of VM [v]'s table and pool, and of the sums over VMs. *)
Lemma total_vm : forall f s v vm vm', get (vms s) v = Some vm ->
  total f (set (vms s) v vm') + f vm = total f (vms s) + f vm'.
Proof. intros. rewrite <- (total_set f (vms s) v vm'). unfold at_key. rewrite H. reflexivity. Qed.
Lemma total_new : forall f s v vm', get (vms s) v = None ->
  total f (set (vms s) v vm') = total f (vms s) + f vm'.
Proof. intros. rewrite <- (total_set f (vms s) v vm'). unfold at_key. rewrite H. lia. Qed.

(* All that a transition changes in one page's record, one VM, and nothing of a second page or VM. The rest of the file shows for each transition
   that it is such a change. *)
Record Change (s s' : State) (p : N) : Prop := {
  c_ram : ram s' = ram s;
  c_windows : windows s' = windows s;
  c_state : forall q, q <> p -> state s' q = state s q;
  c_zero : p = 0 -> state s' p = Host;
  c_is_ram : state s' p <> Host -> is_ram s p = true;
  c_host : forall q, get (host s') q <> None -> q <> p -> get (host s) q <> None;
  c_host_p : get (host s') p <> None ->
     if is_ram s p then host_may_access (state s' p) = true else is_window s p = true;
  c_numbers : forall q, numbers s' q;
  c_iso : forall v vm g q, get (vms s') v = Some vm -> kind vm = Protected ->
    get (table vm) g = Some (Ram q) -> belongs (state s' q) v g;
  c_placed : forall q v g, belongs (state s' q) v g ->
    exists vm, get (vms s') v = Some vm /\ kind vm = Protected /\ get (table vm) g = Some (Ram q);
  c_vms : forall v vm, get (vms s') v = Some vm -> 1 <= v <= 127 /\
    (forall g l, get (table vm) g = Some l -> g < size vm) /\
    (forall g q, get (table vm) g = Some (Window q) -> is_ram s q = false);
}.

Lemma change_keeps : forall s s' p, PagesInv s -> Change s s' p -> PagesInv s'.
Proof.
  intros s s' p I C.
  assert (R : forall q, is_ram s' q = is_ram s q) by (intro; unfold is_ram; rewrite (c_ram _ _ _ C); reflexivity).
  assert (W : forall q, is_window s' q = is_window s q) by (intro; unfold is_window; rewrite (c_windows _ _ _ C); reflexivity).
  constructor.
  - destruct (N.eq_dec 0 p) as [<-|n]; [apply C; reflexivity | rewrite (c_state _ _ _ C _ n); apply I].
  - intro q. rewrite R. destruct (N.eq_dec q p) as [->|n]; [apply C | rewrite (c_state _ _ _ C _ n); apply I].
  - intros q H. rewrite R, W. destruct (N.eq_dec q p) as [->|n]; [apply (c_host_p _ _ _ C); exact H|].
    rewrite (c_state _ _ _ C _ n). apply (host_iso _ I). apply (c_host _ _ _ C); assumption.
  - intro q. apply (c_numbers _ _ _ C q).
  - intro q. apply (c_numbers _ _ _ C q).
  - intro q. apply (c_numbers _ _ _ C q).
  - apply C.
  - apply C.
  - intros v vm g q H H'. rewrite R. eapply C; eassumption.
  - intros v vm g l H H'. eapply C; eassumption.
  - intros v vm H. eapply C; eassumption.
Qed.

Ltac opened :=
  repeat unfold set_pfn_state, clear_pfn_host, scrub, write, set_vm, with_pages, with_own, with_host, with_vms,
    with_mailboxes, with_contents, with_table, with_given, with_cut, lend_once_more, lend_once_less,
    state, held, owned, loans, claims, numbers, is_ram, is_window in *;
  cbn [ram windows ia_bits pages own host vms mailboxes contents kind size table cut given] in *.

Lemma vm_loans_table : forall q vm t, vm_loans q (with_table vm t) =
  match kind vm with Ordinary => total (leaf_is q) t | Protected => 0 end.
Proof. reflexivity. Qed.

(* VM [v] gets a leaf at a free gfn, or loses the one there. *)
Lemma loans_set_leaf : forall q s v vm g l, get (vms s) v = Some vm -> get (table vm) g = None ->
  total (vm_loans q) (set (vms s) v (with_table vm (set (table vm) g l)))
  = total (vm_loans q) (vms s) + match kind vm with Ordinary => leaf_is q l | Protected => 0 end.
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm (with_table vm (set (table vm) g l)) H).
  rewrite vm_loans_table in H1. unfold vm_loans at 2 in H1.
  pose proof (total_set (leaf_is q) (table vm) g l). unfold at_key in H2. rewrite H0 in H2.
  destruct (kind vm); lia.
Qed.

Lemma loans_remove_leaf : forall q s v vm vm' g l, get (vms s) v = Some vm -> get (table vm) g = Some l ->
  kind vm' = kind vm -> table vm' = remove (table vm) g ->
  total (vm_loans q) (set (vms s) v vm')
  + match kind vm with Ordinary => leaf_is q l | Protected => 0 end = total (vm_loans q) (vms s).
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm vm' H).
  unfold vm_loans at 2 4 in H3. rewrite H1, H2 in H3.
  pose proof (total_remove (leaf_is q) (table vm) g). unfold at_key in H4. rewrite H0 in H4.
  destruct (kind vm); lia.
Qed.

Lemma claims_same : forall q s v vm vm', get (vms s) v = Some vm -> given vm' = given vm ->
  total (vm_claims q) (set (vms s) v vm') = total (vm_claims q) (vms s).
Proof. intros. pose proof (total_vm (vm_claims q) s v vm vm' H). unfold vm_claims at 2 4 in H1. rewrite H0 in H1. lia. Qed.

Lemma loans_same : forall q s v vm vm', get (vms s) v = Some vm -> kind vm' = kind vm -> table vm' = table vm ->
  total (vm_loans q) (set (vms s) v vm') = total (vm_loans q) (vms s).
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm vm' H). unfold vm_loans at 2 4 in H2. rewrite H0, H1 in H2. lia.
Qed.

(* Where a protected VM has a page, and the page's record, name each other: so two places are one. *)
Lemma belongs_once : forall st v g v' g', belongs st v g -> belongs st v' g' -> v = v' /\ g = g'.
Proof. destruct st; cbn; try tauto; intros ? ? ? ? [] []; subst; auto. Qed.

Lemma assign_keeps : forall s v g p zero s', PagesInv s -> assign s v g p zero = Done s' -> PagesInv s'.
Proof.
  intros s v g p zero s' I H. unfold assign in H. checks.
  apply of_kind_ok in E as (V & K & _). apply expect_host_ok in E0 as (Z & R & S). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Private v g else state s q).
  { intro q. rewrite <- (state_set (clear_pfn_host s p)). unfold s'. destruct zero; reflexivity. }
  assert (Vs : vms s' = set (vms s) v (with_table a (set (table a) g (Ram p)))) by (unfold s'; destruct zero; reflexivity).
  apply (change_keeps s s' p I). constructor.
  - unfold s'; destruct zero; reflexivity.
  - unfold s'; destruct zero; reflexivity.
  - intros q n. rewrite St. keys; congruence.
  - congruence.
  - auto.
  - unfold s'; destruct zero; cbn; intros; keys; congruence.
  - unfold s'; destruct zero; cbn; intros; keys; congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St, Vs.
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), K, (claims_same q _ _ _ (with_table a _) V eq_refl).
    replace (held s' q) with (held s q) by (unfold s'; destruct zero; reflexivity).
    replace (owned s' q) with (owned s q) by (unfold s'; destruct zero; reflexivity).
    keys; [rewrite S in L, C, T; cbn in *; lia | rewrite N.add_0_r; auto].
  - intros v' vm' g' q. rewrite Vs, St, get_set. intros G K' T. destruct (N.eqb_spec p q) as [<-|n].
    + destruct (N.eqb_spec v v') as [E|].
      * subst v'. injection G as <-. cbn in T. rewrite get_set in T. destruct (N.eqb_spec g g') as [->|]; [cbn; auto|].
        pose proof (vm_iso _ I _ _ _ _ V K T) as B. rewrite S in B. destruct B.
      * pose proof (vm_iso _ I _ _ _ _ G K' T) as B. rewrite S in B. destruct B.
    + destruct (N.eqb_spec v v') as [<-|]; [|exact (vm_iso _ I _ _ _ _ G K' T)].
      injection G as <-. cbn in T. rewrite get_set in T.
      destruct (N.eqb_spec g g') as [<-|]; [congruence | exact (vm_iso _ I _ _ _ _ V K T)].
  - intros q v' g'. rewrite St, Vs. destruct (N.eqb_spec p q) as [<-|n]; intro B.
    + destruct B as [Ev Eg]. subst v' g'. eexists. rewrite get_set, N.eqb_refl. split; [reflexivity|]. cbn.
      rewrite get_set, N.eqb_refl. auto.
    + apply (placed _ I) in B as (vm & G & K' & T). rewrite get_set. destruct (N.eqb_spec v v') as [E|].
      * subst v'. rewrite V in G. injection G as <-. eexists. split; [reflexivity|]. cbn. split; [exact K|].
        rewrite get_set. destruct (N.eqb_spec g g') as [E|]; [congruence | exact T].
      * exists vm. auto.
  - intros v' vm'. rewrite Vs. intro G. keys.
    + injection G as <-. split; [eapply vm_ids; eauto|]. cbn. split; intros; keys; try discriminate; auto.
      * eapply in_size; eauto.
      * eapply windows_no_ram; eauto.
    + split; [eapply vm_ids; eauto|]. split; intros; [eapply in_size | eapply windows_no_ram]; eauto.
Qed.

(* ---- changes that leave every VM's table as it is ---------------------------------------------------------------- *)

Definition same_tables (s s' : State) : Prop :=
  forall v, match get (vms s) v, get (vms s') v with
            | Some vm, Some vm' => kind vm' = kind vm /\ size vm' = size vm /\ table vm' = table vm
            | None, None => True
            | _, _ => False
            end.

Lemma same_vms : forall s s', vms s' = vms s -> same_tables s s'.
Proof. intros s s' E v. rewrite E. destruct (get (vms s) v); auto. Qed.

Lemma same_vm : forall s s' v vm vm', get (vms s) v = Some vm -> vms s' = set (vms s) v vm' ->
  kind vm' = kind vm -> size vm' = size vm -> table vm' = table vm -> same_tables s s'.
Proof.
  intros s s' v vm vm' G E K Z T w. rewrite E, get_set. destruct (N.eqb_spec v w) as [<-|].
  - rewrite G. auto.
  - destruct (get (vms s) w); auto.
Qed.

Lemma tables_change : forall s s' p, PagesInv s -> same_tables s s' ->
  ram s' = ram s -> windows s' = windows s ->
  (forall q, q <> p -> state s' q = state s q) ->
  (forall v g, belongs (state s p) v g <-> belongs (state s' p) v g) ->
  (p = 0 -> state s' p = Host) -> (state s' p <> Host -> is_ram s p = true) ->
  (forall q, get (host s') q <> None -> q <> p -> get (host s) q <> None) ->
  (get (host s') p <> None -> if is_ram s p then host_may_access (state s' p) = true else is_window s p = true) ->
  (forall q, numbers s' q) -> Change s s' p.
Proof.
  intros s s' p I TT A B St Bp Z Is H Hp Nu.
  assert (Bq : forall q v g, belongs (state s q) v g <-> belongs (state s' q) v g).
  { intros q v g. destruct (N.eq_dec q p) as [->|n]; [apply Bp | rewrite (St _ n); tauto]. }
  constructor; auto.
  - intros v vm g q G K T. specialize (TT v). rewrite G in TT. destruct (get (vms s) v) eqn:G'; [|tauto].
    destruct TT as (Ek & _ & Et). apply Bq. apply (vm_iso _ I _ _ _ _ G'); congruence.
  - intros q v g B'. apply Bq in B'. apply (placed _ I) in B' as (vm & G & K & T). specialize (TT v). rewrite G in TT.
    destruct (get (vms s') v) as [vm'|]; [|tauto]. destruct TT as (Ek & _ & Et). exists vm'. repeat split; congruence.
  - intros v vm G. specialize (TT v). rewrite G in TT. destruct (get (vms s) v) eqn:G'; [|tauto].
    destruct TT as (Ek & Es & Et). rewrite Es, Et. split; [eapply vm_ids; eauto|].
    split; intros; [eapply in_size | eapply windows_no_ram]; eauto.
Qed.

(* Nobody counts differently. *)
Lemma same_numbers : forall s s' p st, PagesInv s ->
  (forall q, state s' q = if p =? q then st else state s q) ->
  lent_times st = lent_times (state s p) -> core_times st = core_times (state s p) -> times_ok st ->
  vms s' = vms s -> mailboxes s' = mailboxes s -> own s' = own s -> forall q, numbers s' q.
Proof.
  intros s s' p st I St L C T V M O q. destruct (inv_numbers s I q) as (L' & C' & T').
  unfold numbers, loans, claims, held, owned in *. rewrite V, M, O, St.
  destruct (N.eqb_spec p q) as [<-|]; [rewrite L, C; auto | auto].
Qed.

Lemma not_host : forall s p, PagesInv s -> state s p <> Host -> p <> 0 /\ is_ram s p = true.
Proof. intros s p I H. split; [|apply I; exact H]. intros ->. apply H, I. Qed.

Lemma map_page_host_keeps : forall s p s', PagesInv s -> map_page_host s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. apply (change_keeps s s' p I).
  assert (E : s' = with_host s (set (host s) p tt) /\
              (if is_ram s p then host_may_access (state s p) = true else is_window s p = true)).
  { unfold map_page_host in H. checks; auto. }
  destruct E as [-> A].
  apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros ->. apply I.
  - apply I.
  - cbn. intros q G n. rewrite get_set in G. destruct (N.eqb_spec p q); congruence.
  - apply (inv_numbers s I).
Qed.

Lemma forget_keeps : forall s p, PagesInv s -> PagesInv (forget_page_host s p).
Proof.
  intros s p I. apply (change_keeps s _ p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros ->. apply I.
  - apply I.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - apply (inv_numbers s I).
Qed.

Lemma contents_keep : forall s c, PagesInv s -> PagesInv (with_contents s c).
Proof. intros s c I. destruct I. constructor; assumption. Qed.

Lemma host_store_keeps : forall s p x s', PagesInv s -> host_store s p x = Done s' -> PagesInv s'.
Proof.
  intros s p x s' I H. unfold host_store in H. checks.
  destruct (is_ram s p); [apply contents_keep|]; eapply map_page_host_keeps; eauto.
Qed.

Lemma vm_store_keeps : forall s v g x s', PagesInv s -> vm_store s v g x = Done s' -> PagesInv s'.
Proof. intros s v g x s' I H. unfold vm_store in H. checks. apply contents_keep, I. Qed.

Lemma assign_page_to_core_keeps : forall s p s', PagesInv s -> assign_page_to_core s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold assign_page_to_core in H. checks. apply expect_host_ok in E as (Z & R & S).
  set (s' := with_own _ _).
  assert (St : forall q, state s' q = if p =? q then Core else state s q)
    by (intro; apply (state_set (clear_pfn_host s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - congruence.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : owned s' q = if p =? q then 1 else owned s q)
      by (unfold owned; cbn; rewrite get_set; destruct (p =? q); reflexivity).
    rewrite O. change (held s' q) with (held s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma return_page_to_host_keeps : forall s p s', PagesInv s -> return_page_to_host s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold return_page_to_host in H. checks.
  assert (S : state s p = Core).
  { pose proof (core_count _ I p) as C. unfold claims, owned in C. rewrite E0 in C. destruct (state s p); cbn [core_times] in C; auto; lia. }
  set (s' := with_own _ _).
  assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - intros. rewrite St, N.eqb_refl. reflexivity.
  - intro G. rewrite St, N.eqb_refl, E. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : owned s' q = if p =? q then 0 else owned s q)
      by (unfold owned; cbn; rewrite get_remove; destruct (p =? q); reflexivity).
    rewrite O. change (held s' q) with (held s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; unfold owned in C; rewrite E0 in C; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma donate_pool_page_keeps : forall s v p s', PagesInv s -> donate_pool_page s v p = Done s' -> PagesInv s'.
Proof.
  intros s v p s' I H. unfold donate_pool_page in H. checks.
  apply live_ok in E as (V & _). apply expect_host_ok in E0 as (Z & R & S).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Core else state s q)
    by (intro; apply (state_set (clear_pfn_host s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply (same_vm s s' v a (with_given a (p :: given a))); auto.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - congruence.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_given a (p :: given a))).
    rewrite (loans_same q s v a (with_given a (p :: given a)) V eq_refl eq_refl).
    pose proof (total_vm (vm_claims q) s v a (with_given a (p :: given a)) V) as TC.
    unfold vm_claims at 2 4 in TC. cbn [given with_given count] in TC.
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma own_page_ok : forall s v g p n, PagesInv s -> own_page s v g = Done (p, n) ->
  state s p = Private v g /\ n = 0 \/ state s p = Shared v g n.
Proof.
  intros s v g p n I H. unfold own_page in H. checks;
    apply of_kind_ok in E as (V & K & _); pose proof (vm_iso _ I _ _ _ _ V K E0) as B;
    match goal with X : state s _ = _ |- _ => rewrite X in B end; destruct B; subst; auto.
Qed.

Lemma record_keeps : forall s s' p st, PagesInv s -> (forall q, state s' q = if p =? q then st else state s q) ->
  (exists v g, belongs (state s p) v g /\ belongs st v g) -> times_ok st ->
  ram s' = ram s -> windows s' = windows s -> vms s' = vms s -> mailboxes s' = mailboxes s -> own s' = own s ->
  (forall q, get (host s') q <> None -> get (host s) q <> None) ->
  (get (host s') p <> None -> host_may_access st = true) -> PagesInv s'.
Proof.
  intros s s' p st I St (v & g & B & B') T A1 A2 A3 A4 A5 H Hp.
  assert (NH : state s p <> Host) by (intro X; rewrite X in B; exact B).
  apply (change_keeps s s' p I). apply tables_change; auto.
  - apply same_vms. assumption.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros a b. rewrite St, N.eqb_refl. split; intro X;
      [destruct (belongs_once _ _ _ _ _ X B) | destruct (belongs_once _ _ _ _ _ X B')]; subst; assumption.
  - intros ->. destruct NH. apply I.
  - intros _. apply I, NH.
  - intro G. rewrite St, N.eqb_refl. destruct (not_host s p I NH) as [_ ->]. auto.
  - eapply same_numbers; eauto; destruct (state s p), st; cbn in *; tauto.
Qed.

Lemma grant_keeps : forall s v g s', PagesInv s -> grant_vm_page s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold grant_vm_page in H. checks. destruct a as [p n]. cbn in *. apply N.ltb_lt in E0.
  pose proof (own_page_ok _ _ _ _ _ I E) as O.
  apply (record_keeps s _ p (Shared v g (n + 1)) I); auto; try reflexivity.
  - intro. apply state_set.
  - exists v, g. destruct O as [[-> _]| ->]; cbn; auto.
  - cbn. lia.
Qed.

Lemma revoke_keeps : forall s v g s', PagesInv s -> revoke_vm_page s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold revoke_vm_page in H. destruct (own_page s v g) as [[p n]|] eqn:E; try discriminate. cbn in H.
  destruct (N.eqb_spec n 0); try discriminate.
  destruct (own_page_ok _ _ _ _ _ I E) as [[_ X]|S]; [contradiction|].
  pose proof (counts_ok _ I p) as T. rewrite S in T. cbn in T.
  destruct (N.eqb_spec n 1); injection H as <-.
  - apply (record_keeps s _ p (Private v g) I); auto; try reflexivity.
    + intro. apply (state_set (clear_pfn_host s p)).
    + exists v, g. rewrite S. cbn. auto.
    + cbn. intros q G. rewrite get_remove in G. destruct (p =? q); congruence.
    + cbn. rewrite get_remove, N.eqb_refl. congruence.
  - apply (record_keeps s _ p (Shared v g (n - 1)) I); auto; try reflexivity.
    + intro. apply state_set.
    + exists v, g. rewrite S. cbn. auto.
    + cbn. lia.
Qed.

(* ---- a VM comes --------------------------------------------------------------------------------------------------- *)

Lemma donate_pages_keeps : forall l s v s', PagesInv s -> donate_pages s v l = Done s' -> PagesInv s'.
Proof.
  induction l; cbn; intros s v s' I H; checks; auto.
  eapply IHl; [|exact H]. eapply donate_pool_page_keeps; eauto.
Qed.

Lemma new_vm_keeps : forall s v k n, PagesInv s -> get (vms s) v = None -> 1 <= v <= 127 ->
  PagesInv (set_vm s v (mkVm k n empty false [])).
Proof.
  intros s v k n I V Id. set (vm' := mkVm _ _ _ _ _). constructor; try apply I; cbn [vms set_vm with_vms].
  - intro p. change (state (set_vm s v vm') p) with (state s p). rewrite <- (lent_count _ I p). unfold loans. change (held (set_vm s v vm') p) with (held s p). cbn [vms set_vm with_vms].
    rewrite (total_new (vm_loans p) s v vm' V). unfold vm_loans at 2. destruct k; cbn; rewrite ?total_empty; lia.
  - intro p. change (state (set_vm s v vm') p) with (state s p). rewrite <- (core_count _ I p). unfold claims. change (owned (set_vm s v vm') p) with (owned s p). cbn [vms set_vm with_vms].
    rewrite (total_new (vm_claims p) s v vm' V). change (vm_claims p vm') with 0. lia.
  - intros w vm g p G K T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (vm_iso _ I _ _ _ _ G K T).
  - intros p w g B. apply (placed _ I) in B as (vm & G & K & T). exists vm. rewrite get_set.
    destruct (N.eqb_spec v w); [congruence | auto].
  - intros w vm g p G T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (windows_no_ram _ I _ _ _ _ G T).
  - intros w vm g l G T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (in_size _ I _ _ _ _ G T).
  - intros w vm G. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|]; [exact Id | exact (vm_ids _ I _ _ G)].
Qed.

Lemma register_vm_table_keeps : forall s v k bits root s', PagesInv s ->
  register_vm_table s v k bits root = Done s' -> PagesInv s'.
Proof.
  intros s v k bits root s' I H. unfold register_vm_table in H. checks.
  eapply donate_pages_keeps; [|exact H]. apply new_vm_keeps; auto.
  apply andb_true_iff in E as [A B]. apply N.leb_le in A, B. auto.
Qed.

(* ---- lending ------------------------------------------------------------------------------------------------------ *)

Lemma lend_more : forall s p, (state s p = Host \/ exists n, state s p = Lent n /\ n < 255) ->
  forall q, state (lend_once_more s p) q = if p =? q then Lent (lent_times (state s p) + 1) else state s q.
Proof.
  intros s p H q. unfold lend_once_more. rewrite state_set. destruct H as [H|(n & H & _)]; rewrite H; reflexivity.
Qed.

Lemma lend_less : forall s p n, state s p = Lent n ->
  forall q, state (lend_once_less s p) q = if p =? q then (if n =? 1 then Host else Lent (n - 1)) else state s q.
Proof. intros s p n H q. unfold lend_once_less. rewrite H, state_set. reflexivity. Qed.

Lemma lend_less_fields : forall s p, let s' := lend_once_less s p in
  ram s' = ram s /\ windows s' = windows s /\ host s' = host s /\ vms s' = vms s /\ mailboxes s' = mailboxes s /\
  own s' = own s /\ contents s' = contents s /\ ia_bits s' = ia_bits s.
Proof. intros. unfold s', lend_once_less. destruct (state s p); cbn; auto 9. Qed.

Lemma no_claims : forall st v g, core_times st = 0 -> lent_times st <> 0 -> ~ belongs st v g.
Proof. destruct st; cbn; intros; intro; lia. Qed.

Lemma hold_mailbox_keeps : forall s p s', PagesInv s -> hold_mailbox s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold hold_mailbox in H. checks. apply may_lend_ok in E as (Z & R & S).
  set (s' := with_mailboxes _ _).
  assert (St : forall q, state s' q = if p =? q then Lent (lent_times (state s p) + 1) else state s q)
    by (apply (lend_more s p S)).
  assert (Ho : host s' = host s) by reflexivity.
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl. destruct S as [->|(n & -> & _)]; reflexivity.
  - congruence.
  - intros _. rewrite R, St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : held s' q = if p =? q then held s p + 1 else held s q)
      by (unfold held at 1; cbn; rewrite get_set; destruct (p =? q); reflexivity).
    rewrite O. change (owned s' q) with (owned s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; auto.
    destruct S as [S|(n & S & ?)]; rewrite S in *; cbn [lent_times core_times times_ok] in *; repeat split; auto; lia.
Qed.

(* One of those for whom the page is lent lets it go. *)
Lemma less_numbers : forall s s' p, PagesInv s -> loans s p <> 0 ->
  (forall q, state s' q = state (lend_once_less s p) q) ->
  (forall q, loans s' q + (if p =? q then 1 else 0) = loans s q) -> (forall q, claims s' q = claims s q) ->
  (exists n, state s p = Lent n /\ 1 <= n <= 255) /\ forall q, numbers s' q.
Proof.
  intros s s' p I N0 St L C.
  assert (S : exists n, state s p = Lent n /\ 1 <= n <= 255).
  { rewrite (lent_count _ I p) in N0. pose proof (counts_ok _ I p) as T. destruct (state s p); try (contradiction N0; reflexivity). eauto. }
  split; auto. destruct S as (n & S & B). intro q. destruct (inv_numbers s I q) as (L' & C' & T').
  unfold numbers. rewrite St, (lend_less s p n S), C. specialize (L q).
  destruct (N.eqb_spec p q) as [E|]; [subst q|].
  - rewrite S in L', C', T'. cbn [lent_times core_times times_ok] in L', C', T'.
    destruct (N.eqb_spec n 1); cbn [lent_times core_times times_ok]; repeat split; auto; lia.
  - rewrite N.add_0_r in L. rewrite L. auto.
Qed.

Lemma drop_mailbox_keeps : forall s p s', PagesInv s -> drop_mailbox s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold drop_mailbox in H. checks. apply N.eqb_neq in E0.
  set (s' := with_mailboxes _ _).
  destruct (lend_less_fields s p) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
  assert (St : forall q, state s' q = state (lend_once_less s p) q) by reflexivity.
  assert (Hd : forall q, held s' q + (if p =? q then 1 else 0) = held s q).
  { intro q. unfold held at 1. unfold s'. cbn [mailboxes with_mailboxes].
    destruct (N.eqb_spec (held s p - 1) 0); rewrite ?get_set, ?get_remove; destruct (N.eqb_spec p q) as [<-|]; try lia;
      fold (held s q); lia. }
  destruct (less_numbers s s' p I) as ((n & S & B) & Nu); auto.
  { unfold loans. lia. }
  { intro q. unfold loans. specialize (Hd q). change (vms s') with (vms (lend_once_less s p)). rewrite F4. lia. }
  { intro q. unfold claims, owned. change (vms s') with (vms (lend_once_less s p)).
    change (own s') with (own (lend_once_less s p)). rewrite F4, F6. reflexivity. }
  apply (change_keeps s s' p I). apply tables_change; auto.
  - apply same_vms. exact F4.
  - intros q m. rewrite St, (lend_less s p n S). destruct (N.eqb_spec p q); congruence.
  - intros v g. rewrite St, (lend_less s p n S), N.eqb_refl, S. destruct (n =? 1); reflexivity.
  - intros ->. rewrite (page_zero _ I) in S. discriminate.
  - intros q G _. change (host s') with (host (lend_once_less s p)) in G. rewrite F3 in G. exact G.
  - intros _. rewrite E, St, (lend_less s p n S), N.eqb_refl. destruct (n =? 1); reflexivity.
Qed.

(* ---- changes of one VM's table that leave the RAM of protected VMs as it is --------------------------------------- *)

Lemma table_change : forall s s' p v vm vm', PagesInv s -> get (vms s) v = Some vm -> vms s' = set (vms s) v vm' ->
  kind vm' = kind vm -> size vm' = size vm ->
  (kind vm = Protected -> forall g q, get (table vm') g = Some (Ram q) <-> get (table vm) g = Some (Ram q)) ->
  (forall g l, get (table vm') g = Some l -> get (table vm) g = Some l \/
     g < size vm /\ match l with Window q => is_ram s q = false | Ram _ => True end) ->
  ram s' = ram s -> windows s' = windows s -> host s' = host s ->
  (forall q, q <> p -> state s' q = state s q) ->
  (forall v g, belongs (state s p) v g <-> belongs (state s' p) v g) ->
  (p = 0 -> state s' p = Host) -> (state s' p <> Host -> is_ram s p = true) ->
  (host_may_access (state s p) = true -> host_may_access (state s' p) = true) ->
  (forall q, numbers s' q) -> PagesInv s'.
Proof.
  intros s s' p v vm vm' I V Vs K Sz Tp Tl A B Ho St Bp Z Is Acc Nu.
  assert (Bq : forall q w g, belongs (state s q) w g <-> belongs (state s' q) w g).
  { intros q w g. destruct (N.eq_dec q p) as [->|n]; [apply Bp | rewrite (St _ n); tauto]. }
  apply (change_keeps s s' p I). constructor; auto.
  - rewrite Ho. auto.
  - rewrite Ho. intro G. apply (host_iso _ I) in G. destruct (is_ram s p); auto.
  - rewrite Vs. intros w x g q G Kx T. rewrite get_set in G. apply Bq. destruct (N.eqb_spec v w) as [E|n].
    + subst w. injection G as <-. apply (vm_iso _ I _ _ _ _ V); [congruence|]. apply Tp; [congruence | exact T].
    + apply (vm_iso _ I _ _ _ _ G Kx T).
  - intros q w g X. apply Bq in X. apply (placed _ I) in X as (x & G & Kx & T). rewrite Vs, get_set.
    destruct (N.eqb_spec v w) as [E|n]; [subst w | exists x; auto].
    rewrite V in G. injection G as <-. exists vm'. repeat split; [congruence | apply Tp; auto].
  - rewrite Vs. intros w x G. rewrite get_set in G. destruct (N.eqb_spec v w) as [E|n].
    + subst w. injection G as <-. split; [exact (vm_ids _ I _ _ V)|]. rewrite Sz. split; intros.
      * destruct (Tl _ _ H) as [O|[O _]]; [exact (in_size _ I _ _ _ _ V O) | exact O].
      * destruct (Tl _ _ H) as [O|[_ O]]; [exact (windows_no_ram _ I _ _ _ _ V O) | exact O].
    + split; [exact (vm_ids _ I _ _ G)|]. split; intros; [exact (in_size _ I _ _ _ _ G H) | exact (windows_no_ram _ I _ _ _ _ G H)].
Qed.

Lemma ordinary : forall k : VmKind, k = Ordinary -> k <> Protected.
Proof. intros. congruence. Qed.

Lemma lend_keeps : forall s v g p s', PagesInv s -> lend s v g p = Done s' -> PagesInv s'.
Proof.
  intros s v g p s' I H. unfold lend in H. checks.
  apply of_kind_ok in E as (V & K & _). apply may_lend_ok in E0 as (Z & R & S). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Lent (lent_times (state s p) + 1) else state s q)
    by (apply (lend_more s p S)).
  apply (table_change s s' p v a (with_table a (set (table a) g (Ram p)))); auto.
  - congruence.
  - cbn. intros g' l. rewrite get_set. destruct (N.eqb_spec g g'); intro X; [injection X as <-; subst; auto | auto].
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl. destruct S as [->|(n & -> & _)]; reflexivity.
  - congruence.
  - intros _. rewrite St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_table a (set (table a) g (Ram p)))).
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), K, (claims_same q _ _ _ (with_table a _) V eq_refl). cbn [leaf_is].
    destruct (N.eqb_spec p q) as [<-|]; [|rewrite N.add_0_r; auto].
    destruct S as [S|(n & S & ?)]; rewrite S in *; cbn [lent_times core_times times_ok] in *; repeat split; auto; lia.
Qed.

(* An ordinary VM's leaf goes: for take_back and clear_vm_page. *)
Lemma leaf_goes : forall s s' v g p vm vm', PagesInv s -> get (vms s) v = Some vm -> kind vm = Ordinary ->
  get (table vm) g = Some (Ram p) -> table vm' = remove (table vm) g -> kind vm' = kind vm -> size vm' = size vm ->
  given vm' = given vm -> ram s' = ram s -> windows s' = windows s -> host s' = host s -> own s' = own s ->
  mailboxes s' = mailboxes s -> vms s' = set (vms s) v vm' ->
  (forall q, state s' q = state (lend_once_less s p) q) -> PagesInv s'.
Proof.
  intros s s' v g p vm vm' I V K Lf T' K' Sz' G' A1 A2 A3 A4 A5 Vs St.
  assert (Lq : forall q, loans s' q + (if p =? q then 1 else 0) = loans s q).
  { intro q. unfold loans, held. rewrite A5, Vs. pose proof (loans_remove_leaf q s v vm vm' g _ V Lf K' T') as X.
    rewrite K in X. cbn [leaf_is] in X. lia. }
  destruct (less_numbers s s' p I) as ((n & S & B) & Nu); auto.
  { specialize (Lq p). rewrite N.eqb_refl in Lq. lia. }
  { intro q. unfold claims, owned. rewrite A4, Vs, (claims_same q s v vm vm' V G'). reflexivity. }
  apply (table_change s s' p v vm vm'); auto.
  - congruence.
  - rewrite T'. intros g' l. rewrite get_remove. destruct (N.eqb_spec g g'); [discriminate | auto].
  - intros q m. rewrite St, (lend_less s p n S). destruct (N.eqb_spec p q); congruence.
  - intros w h. rewrite St, (lend_less s p n S), N.eqb_refl, S. destruct (n =? 1); reflexivity.
  - intros ->. rewrite (page_zero _ I) in S. discriminate.
  - intros _. apply I. congruence.
  - intros _. rewrite St, (lend_less s p n S), N.eqb_refl. destruct (n =? 1); reflexivity.
Qed.

Lemma take_back_keeps : forall s v g s', PagesInv s -> take_back s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold take_back in H. checks; auto. apply of_kind_ok in E as (V & K & _).
  destruct (lend_less_fields s pfn) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
  eapply leaf_goes with (v := v) (vm := a) (vm' := with_table a (remove (table a) g)); eauto; try reflexivity.
  cbn. rewrite F4. reflexivity.
Qed.

Lemma map_vm_io_keeps : forall s v g p s', PagesInv s -> map_vm_io s v g p = Done s' -> PagesInv s'.
Proof.
  intros s v g p s' I H. unfold map_vm_io in H. checks. apply live_ok in E as (V & _). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  apply (table_change s s' 0 v a (with_table a (set (table a) g (Window p)))); auto.
  - intros _ g' q. cbn. rewrite get_set. destruct (N.eqb_spec g g') as [->|]; [|tauto]. rewrite Free. split; discriminate.
  - cbn. intros g' l. rewrite get_set. destruct (N.eqb_spec g g'); intro X; [injection X as <-; subst; auto | auto].
  - reflexivity.
  - intros _. exact (page_zero _ I).
  - intro X. apply (ram_only _ I). exact X.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
    change (state s' q) with (state s q). change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_table a (set (table a) g (Window p)))).
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), (claims_same q _ _ _ (with_table a _) V eq_refl). cbn [leaf_is].
    destruct (kind a); rewrite N.add_0_r; auto.
Qed.

(* ---- a VM goes ---------------------------------------------------------------------------------------------------- *)

Lemma cut_vm_keeps : forall s v, PagesInv s -> PagesInv (cut_vm s v).
Proof.
  intros s v I. unfold cut_vm. destruct (get (vms s) v) as [vm|] eqn:V; auto.
  set (s' := set_vm _ _ _). apply (table_change s s' 0 v vm (with_cut vm)); auto.
  - intros. reflexivity.
  - reflexivity.
  - intros _. exact (page_zero _ I).
  - intro X. apply (ram_only _ I). exact X.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
    change (state s' q) with (state s q). change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_cut vm)).
    rewrite (loans_same q s v vm (with_cut vm) V eq_refl eq_refl), (claims_same q s v vm (with_cut vm) V eq_refl). auto.
Qed.

Lemma clear_vm_page_keeps : forall s v g, PagesInv s -> PagesInv (clear_vm_page s v g).
Proof.
  intros s v g I. unfold clear_vm_page. destruct (get (vms s) v) as [vm|] eqn:V; auto.
  set (vm' := with_table _ _). set (s1 := set_vm _ _ _).
  assert (Plain : (forall p, get (table vm) g <> Some (Ram p)) -> PagesInv s1).
  { intro NoRam. apply (table_change s s1 0 v vm vm'); auto.
    - intros _ g' q. cbn. rewrite get_remove. destruct (N.eqb_spec g g') as [->|]; [|tauto].
      split; [discriminate | intro X; destruct (NoRam _ X)].
    - intros g' l. cbn. rewrite get_remove. destruct (N.eqb_spec g g'); [discriminate | auto].
    - reflexivity.
    - intros _. exact (page_zero _ I).
    - intro X. apply (ram_only _ I). exact X.
    - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
      change (state s1 q) with (state s q). change (held s1 q) with (held s q). change (owned s1 q) with (owned s q).
      change (vms s1) with (set (vms s) v vm'). rewrite (claims_same q s v vm vm' V eq_refl).
      destruct (get (table vm) g) as [l|] eqn:Lf.
      + pose proof (loans_remove_leaf q s v vm vm' g l V Lf eq_refl eq_refl) as X.
        destruct l; [destruct (NoRam pfn); reflexivity|]. cbn [leaf_is] in X.
        replace (total (vm_loans q) (set (vms s) v vm')) with (total (vm_loans q) (vms s)) by (destruct (kind vm); lia). auto.
      + pose proof (total_vm (vm_loans q) s v vm vm' V) as X.
        pose proof (total_remove (leaf_is q) (table vm) g) as Y. unfold at_key in Y. rewrite Lf, N.add_0_r in Y.
        assert (Same : vm_loans q vm' = vm_loans q vm) by (unfold vm_loans; cbn; destruct (kind vm); auto).
        replace (total (vm_loans q) (set (vms s) v vm')) with (total (vm_loans q) (vms s)) by lia. auto. }
  destruct (get (table vm) g) as [[p|p]|] eqn:Lf; [|apply Plain; discriminate..].
  destruct (kind vm) eqn:K.
  - pose proof (vm_iso _ I _ _ _ _ V K Lf) as B0.
    assert (NH : state s p <> Host) by (intro X; rewrite X in B0; exact B0).
    destruct (not_host s p I NH) as [Z R].
    set (s' := set_pfn_state _ _ _).
    assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s1 p))).
    apply (change_keeps s s' p I). constructor; auto; try reflexivity.
    + intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
    + contradiction.
    + intros _. rewrite R, St, N.eqb_refl. reflexivity.
    + intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
      change (held s' q) with (held s q). change (owned s' q) with (owned s q). change (vms s') with (set (vms s) v vm').
      rewrite (claims_same q s v vm vm' V eq_refl).
      pose proof (loans_remove_leaf q s v vm vm' g _ V Lf eq_refl eq_refl) as X. rewrite K, N.add_0_r in X. rewrite X.
      destruct (N.eqb_spec p q) as [<-|]; auto.
      destruct (state s p); cbn [belongs lent_times core_times times_ok] in *; tauto.
    + change (vms s') with (set (vms s) v vm'). intros w x h q G Kx T. rewrite get_set in G. rewrite St.
      assert (Old : get (vms s) w = Some x \/ w = v /\ x = vm') by (destruct (N.eqb_spec v w); [injection G as <-|]; auto).
      assert (B : belongs (state s q) w h /\ (w = v -> h <> g)).
      { destruct (N.eqb_spec v w) as [E|n].
        - subst w. injection G as <-. cbn in T. rewrite get_remove in T. destruct (N.eqb_spec g h); [discriminate|].
          split; [exact (vm_iso _ I _ _ _ _ V K T) | congruence].
        - split; [exact (vm_iso _ I _ _ _ _ G Kx T) | congruence]. }
      destruct B as [B Ne]. destruct (N.eqb_spec p q) as [E|n]; auto.
      subst q. destruct (belongs_once _ _ _ _ _ B B0). tauto.
    + intros q w h. rewrite St. destruct (N.eqb_spec p q) as [E|n]; [intros []|]. intro B.
      pose proof B as B'. apply (placed _ I) in B' as (x & G & Kx & T). change (vms s') with (set (vms s) v vm'). rewrite get_set.
      destruct (N.eqb_spec v w) as [E|n']; [subst w | exists x; auto].
      rewrite V in G. injection G as <-. exists vm'. repeat split; [exact K|]. cbn. rewrite get_remove.
      destruct (N.eqb_spec g h) as [E|]; [|exact T]. subst h. congruence.
    + change (vms s') with (set (vms s) v vm'). intros w x G. rewrite get_set in G. destruct (N.eqb_spec v w) as [E|n].
      * subst w. injection G as <-. split; [exact (vm_ids _ I _ _ V)|].
        split; cbn; intros h y T; rewrite get_remove in T; destruct (N.eqb_spec g h); try discriminate;
          [exact (in_size _ I _ _ _ _ V T) | exact (windows_no_ram _ I _ _ _ _ V T)].
      * split; [exact (vm_ids _ I _ _ G)|]. split; intros; [exact (in_size _ I _ _ _ _ G H) | exact (windows_no_ram _ I _ _ _ _ G H)].
  - destruct (lend_less_fields s1 p) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
    eapply (leaf_goes s _ v g p vm vm'); eauto; try reflexivity.
    intro q. unfold lend_once_less. change (state s1 p) with (state s p). destruct (state s p); reflexivity.
Qed.

Lemma clear_vm_range_keeps : forall s v, PagesInv s -> PagesInv (clear_vm_range s v).
Proof.
  intros s v I. unfold clear_vm_range. destruct (get (vms s) v); auto.
  apply (cut_vm_keeps s v) in I. revert I. generalize (cut_vm s v). induction (entries (table v0)) as [|e l IH]; cbn; intros; auto.
  apply IH, clear_vm_page_keeps, I.
Qed.

Lemma release_keeps : forall s v, PagesInv s -> PagesInv (release s v).
Proof.
  intros s v I. unfold release. destruct (get (vms s) v) as [vm|] eqn:V; auto. destruct (given vm) as [|p rest] eqn:G; auto.
  set (s' := set_vm _ _ _).
  assert (S : state s p = Core).
  { pose proof (core_count _ I p) as C. pose proof (total_at (vm_claims p) _ _ _ V) as X. unfold claims in C.
    unfold vm_claims at 1 in X. rewrite G in X. cbn [count] in X. rewrite N.eqb_refl in X.
    destruct (state s p); cbn [core_times] in C; auto; lia. }
  assert (R : is_ram s p = true) by (apply I; congruence).
  assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply (same_vm s s' v vm (with_given vm rest)); auto.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - intros. rewrite St, N.eqb_refl. reflexivity.
  - intros _. rewrite R, St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_given vm rest)).
    rewrite (loans_same q s v vm (with_given vm rest) V eq_refl eq_refl).
    pose proof (total_vm (vm_claims q) s v vm (with_given vm rest) V) as X.
    unfold vm_claims at 2 4 in X. rewrite G in X. cbn [given with_given count] in X.
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

(* After as many releases as it has pages, a VM has none. *)
Lemma release_all_keeps : forall n s v vm, PagesInv s -> get (vms s) v = Some vm -> length (given vm) = n ->
  let s' := release_all n s v in
  PagesInv s' /\ get (vms s') v = Some (with_given vm []).
Proof.
  induction n; intros s v vm I V L; cbn.
  - split; auto. destruct vm as [k z t c [|]]; [exact V | discriminate].
  - destruct (given vm) as [|p rest] eqn:G; [discriminate|]. injection L as L.
    apply (IHn (release s v) v (with_given vm rest)); auto.
    + apply release_keeps, I.
    + unfold release. rewrite V, G. cbn. rewrite get_set, N.eqb_refl. reflexivity.
Qed.

Lemma free_vm_table_keeps : forall s v s', PagesInv s -> free_vm_table s v = Done s' -> PagesInv s'.
Proof.
  intros s v s' I H. unfold free_vm_table in H. checks. rename v0 into vm.
  destruct (release_all_keeps _ s v vm I E eq_refl) as (J & V). set (t := release_all _ _ _) in *. clearbody t.
  assert (No : forall k, get (table vm) k = None) by (apply is_empty_get, E0).
  constructor; try apply J; cbn [vms with_vms].
  - intro p. change (state (with_vms t (remove (vms t) v)) p) with (state t p). rewrite <- (lent_count _ J p).
    unfold loans. change (held (with_vms t (remove (vms t) v)) p) with (held t p). cbn [vms with_vms].
    pose proof (total_remove (vm_loans p) (vms t) v) as X. unfold at_key in X. rewrite V in X.
    replace (vm_loans p (with_given vm [])) with 0 in X; [lia|]. unfold vm_loans. cbn. destruct (kind vm); auto.
    symmetry. apply total_0. intros k a G. rewrite No in G. discriminate.
  - intro p. change (state (with_vms t (remove (vms t) v)) p) with (state t p). rewrite <- (core_count _ J p).
    unfold claims. change (owned (with_vms t (remove (vms t) v)) p) with (owned t p). cbn [vms with_vms].
    pose proof (total_remove (vm_claims p) (vms t) v) as X. unfold at_key in X. rewrite V in X. cbn in X. lia.
  - intros w x g p G K T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (vm_iso _ J _ _ _ _ G K T)].
  - intros p w g B. apply (placed _ J) in B as (x & G & K & T). exists x. rewrite get_remove.
    destruct (N.eqb_spec v w) as [E1|]; auto. subst w. rewrite V in G. injection G as <-. cbn in T. rewrite No in T. discriminate.
  - intros w x g p G T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (windows_no_ram _ J _ _ _ _ G T)].
  - intros w x g l G T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (in_size _ J _ _ _ _ G T)].
  - intros w x G. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (vm_ids _ J _ _ G)].
Qed.

Lemma boot_inv : forall ram windows bits, PagesInv (boot ram windows bits).
Proof.
  intros ram0 windows0 bits.
  assert (S : forall p, state (boot ram0 windows0 bits) p = Host) by (intro; unfold state; cbn; rewrite get_empty; reflexivity).
  constructor; intros; rewrite ?S in *; cbn in *; rewrite ?get_empty in *; try contradiction; try discriminate; auto.
  - unfold loans, held. cbn. rewrite get_empty. reflexivity.
  - unfold claims, owned. cbn. rewrite get_empty. reflexivity.
Qed.

Lemma page_step_keeps : forall s op, PagesInv s -> PagesInv (page_step s op).
Proof.
  intros s op I. unfold page_step. destruct (perform s op) as [s'|] eqn:H; [|exact I].
  destruct op; cbn [perform] in H.
  - exact (map_page_host_keeps _ _ _ I H).
  - injection H as <-. apply forget_keeps, I.
  - exact (host_store_keeps _ _ _ _ I H).
  - exact (assign_page_to_core_keeps _ _ _ I H).
  - exact (return_page_to_host_keeps _ _ _ I H).
  - exact (register_vm_table_keeps _ _ _ _ _ _ I H).
  - exact (donate_pool_page_keeps _ _ _ _ I H).
  - exact (assign_keeps _ _ _ _ _ _ I H).
  - exact (grant_keeps _ _ _ _ I H).
  - exact (revoke_keeps _ _ _ _ I H).
  - exact (hold_mailbox_keeps _ _ _ I H).
  - exact (drop_mailbox_keeps _ _ _ I H).
  - exact (lend_keeps _ _ _ _ _ I H).
  - exact (take_back_keeps _ _ _ _ I H).
  - exact (map_vm_io_keeps _ _ _ _ _ I H).
  - injection H as <-. apply cut_vm_keeps, I.
  - injection H as <-. apply clear_vm_page_keeps, I.
  - injection H as <-. apply clear_vm_range_keeps, I.
  - exact (free_vm_table_keeps _ _ _ I H).
  - exact (vm_store_keeps _ _ _ _ _ I H).
Qed.

(* ---- what follows from the invariants ------------------------------------------------------------------------------ *)

Lemma host_maps_nothing_private : forall s p v g, PagesInv s ->
  state s p = Core \/ state s p = Private v g -> get (host s) p = None.
Proof.
  intros s p v g I S. destruct (get (host s) p) eqn:H; [|reflexivity].
  pose proof (host_iso _ I p) as X. rewrite H in X. specialize (X ltac:(discriminate)).
  rewrite (ram_only _ I) in X by (destruct S; congruence). destruct S as [S|S]; rewrite S in X; discriminate.
Qed.

Lemma ordinary_maps_lent : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Ordinary -> get (table vm) g = Some (Ram p) -> exists n, state s p = Lent n.
Proof.
  intros s v vm g p I V K T. pose proof (lent_count _ I p) as L. unfold loans in L.
  pose proof (total_at (vm_loans p) _ _ _ V) as X. unfold vm_loans at 1 in X. rewrite K in X.
  pose proof (total_at (leaf_is p) _ _ _ T) as Y. cbn [leaf_is] in Y. rewrite N.eqb_refl in Y.
  destruct (state s p); cbn [lent_times] in L; eauto; lia.
Qed.

Lemma own_page_in_one_place : forall s v w vm wm g h p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Protected -> get (table vm) g = Some (Ram p) ->
  get (vms s) w = Some wm -> get (table wm) h = Some (Ram p) -> v = w /\ g = h.
Proof.
  intros s v w vm wm g h p I V K T W T'. pose proof (vm_iso _ I _ _ _ _ V K T) as B. destruct (kind wm) eqn:K'.
  - exact (belongs_once _ _ _ _ _ B (vm_iso _ I _ _ _ _ W K' T')).
  - destruct (ordinary_maps_lent _ _ _ _ _ I W K' T') as [n S]. rewrite S in B. destruct B.
Qed.

Lemma no_vm_maps_core : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> get (table vm) g = Some (Ram p) -> state s p <> Core.
Proof.
  intros s v vm g p I V T S. destruct (kind vm) eqn:K.
  - pose proof (vm_iso _ I _ _ _ _ V K T) as B. rewrite S in B. exact B.
  - destruct (ordinary_maps_lent _ _ _ _ _ I V K T) as [n S']. congruence.
Qed.
