(* Every call of Lifecycle.v keeps the invariants of lives, and the view of a VM that is not off. *)
Require Import NArith List Lia Bool.
Require Import Pages Lifecycle Invariants PagesProofs VmPagesProofs Noninterference NoninterferenceProofs LifeProofs.
Import ListNotations.
Local Open Scope N_scope.

(* ---- what transitions leave of a VM -------------------------------------------------------------------------------- *)

Definition shape (m : State) (v : N) : option (VmKind * bool) :=
  match get (vms m) v with Some vm => Some (kind vm, cut vm) | None => None end.

Definition takes (v : N) (op : Op) : Prop :=
  match op with
  | CutVm w | ClearVmPage w _ | ClearVmRange w | FreeVmTable w => w = v
  | RegisterVmTable w _ _ _ => w = v
  | _ => False
  end.

Lemma shape_set : forall m m' w vm vm' v, get (vms m) w = Some vm -> vms m' = set (vms m) w vm' -> kind vm' = kind vm ->
  cut vm' = cut vm -> shape m' v = shape m v.
Proof.
  intros m m' w vm vm' v G E K C. unfold shape. rewrite E, get_set. destruct (N.eqb_spec w v) as [X|]; [subst w|reflexivity].
  rewrite G, K, C. reflexivity.
Qed.

Lemma shape_other : forall m m' w vm' v, vms m' = set (vms m) w vm' -> w <> v -> shape m' v = shape m v.
Proof. intros m m' w vm' v E D. unfold shape. rewrite E, get_set. destruct (N.eqb_spec w v); [contradiction | reflexivity]. Qed.

Lemma shape_vms : forall m m' v, vms m' = vms m -> shape m' v = shape m v.
Proof. intros m m' v E. unfold shape. rewrite E. reflexivity. Qed.

Lemma donate_shape : forall l m v m', donate_pages m v l = Done m' -> forall w, shape m' w = shape m w.
Proof.
  induction l; cbn [donate_pages]; intros m v m' H w; [injection H as <-; reflexivity|].
  destruct (donate_pool_page m v a) as [t|] eqn:E; [|discriminate]. rewrite (IHl _ _ _ H). unfold donate_pool_page in E. checks.
  apply live_ok in E0 as (V & _). eapply shape_set; [exact V | reflexivity | reflexivity | reflexivity].
Qed.

Lemma clear_page_shape : forall m w g v, w <> v -> shape (clear_vm_page m w g) v = shape m v.
Proof.
  intros m w g v D. unfold clear_vm_page. destruct (get (vms m) w) as [vm|]; [|reflexivity].
  set (s1 := set_vm _ _ _). assert (S : shape s1 v = shape m v) by (eapply shape_other; [reflexivity | exact D]).
  destruct (get (table vm) g) as [[p|p]|]; auto. destruct (kind vm); auto.
  rewrite <- S. apply shape_vms. apply lend_less_fields.
Qed.

Lemma release_shape : forall n m w v, shape (release_all n m w) v = shape m v.
Proof.
  induction n; cbn; intros; auto. rewrite IHn. unfold release. destruct (get (vms m) w) as [vm|] eqn:G; [|reflexivity].
  destruct (given vm) eqn:E; [reflexivity|]. eapply shape_set; [exact G | reflexivity | reflexivity | reflexivity].
Qed.

Lemma step_shape : forall m op v, ~ takes v op -> shape (page_step m op) v = shape m v.
Proof.
  intros m op v T. unfold page_step. destruct (perform m op) as [m'|] eqn:H; [|reflexivity].
  destruct op; cbn [perform takes] in *;
    try (unfold map_page_host, host_store, map_page_host, assign_page_to_core, return_page_to_host, hold_mailbox, grant_vm_page,
      revoke_vm_page, vm_store in H; checks; try injection H as <-; try reflexivity; fail).
  - unfold register_vm_table in H. checks. rewrite (donate_shape _ _ _ _ H). eapply shape_other; [reflexivity | exact T].
  - unfold donate_pool_page in H. checks. apply live_ok in E as (V & _). eapply shape_set; [exact V | reflexivity..].
  - unfold assign in H. checks. apply of_kind_ok in E as (V & _ & _). eapply shape_set; [exact V | destruct zero; reflexivity | reflexivity..].
  - unfold drop_mailbox in H. checks. apply shape_vms. apply lend_less_fields.
  - unfold lend in H. checks. apply of_kind_ok in E as (V & _ & _). eapply shape_set; [exact V | reflexivity..].
  - unfold take_back in H. checks; auto. apply of_kind_ok in E as (V & _ & _).
    destruct (lend_less_fields m pfn) as (_ & _ & _ & F4 & _). eapply shape_set; [exact V | cbn; rewrite F4; reflexivity | reflexivity..].
  - unfold map_vm_io in H. checks. apply live_ok in E as (V & _). eapply shape_set; [exact V | reflexivity..].
  - injection H as <-. unfold cut_vm. destruct (get (vms m) v0) eqn:G; [|reflexivity]. eapply shape_other; [reflexivity | exact T].
  - injection H as <-. apply clear_page_shape, T.
  - injection H as <-. unfold clear_vm_range. destruct (get (vms m) v0) as [vm|] eqn:G; [|reflexivity].
    assert (S : shape (cut_vm m v0) v = shape m v) by (unfold cut_vm; rewrite G; eapply shape_other; [reflexivity | exact T]).
    rewrite <- S. generalize (cut_vm m v0). induction (entries (table vm)) as [|e l IH]; cbn; intros; auto.
    rewrite IH. apply clear_page_shape, T.
  - unfold free_vm_table in H. checks. rewrite <- (release_shape (length (given v1)) m v0 v). unfold shape. cbn.
    rewrite get_remove. destruct (N.eqb_spec v0 v); [contradiction | reflexivity].
Qed.

(* ---- all calls ------------------------------------------------------------------------------------------------------ *)

Lemma plain_allowed : forall s op, plain op -> allowed s op.
Proof. destruct op; cbn; tauto. Qed.

Lemma step_ops : forall s call, exists ops,
  memory (fst (step s call)) = fold_left page_step ops (memory s) /\ Forall (allowed s) ops.
Proof.
  intros s call. unfold step. destruct (transition s call) as [[s' a]|] eqn:H; [|exists []; auto].
  assert (O : ordinary_call call \/ ~ ordinary_call call) by (destruct call; cbn; auto). destruct O as [O|O].
  - destruct (call_ops s call s' a H O) as [(ops & E & F) _]. exists ops. split; [exact E|].
    eapply Forall_impl; [|exact F]. intros op P. apply plain_allowed, P.
  - destruct call; cbn [transition ordinary_call] in *; try (destruct (O Logic.I)).
    + unfold register_vm in H. destruct (free_id s) as [v|]; [|discriminate]. unfold in_memory in H.
      destruct (register_vm_table _ _ _ _ _) as [m|] eqn:E; [|discriminate]. injection H as <- <-.
      exists [RegisterVmTable v (if protected then Protected else Ordinary) bits root]. split; [|repeat constructor].
      cbn. unfold page_step. cbn [perform]. rewrite E. reflexivity.
    + unfold reclaim_vm in H. pieces. found. destruct In as [<-|[]]. exists [ClearVmRange vm]. split; [reflexivity|].
      constructor; [|constructor]. exists l. split; [exact L|]. split; [exact St | apply idle_ok; assumption].
    + unfold destroy_vm in H. pieces. found. destruct In as [<-|[]]. apply orb_false_iff in E0 as [R _].
      assert (A : exists l, get (lives s) vm = Some l /\ vm_state l = PowerOff /\ idle l)
        by (exists l; split; [exact L | split; [exact St | apply idle_ok, R]]).
      exists (ClearVmRange vm :: FreeVmTable vm :: map (fun e => DropMailbox (mailbox (snd e))) (entries (vcpus l))). split.
      * cbn [fold_left memory fst]. match goal with X : free_vm_table ?m _ = Done ?t |- _ =>
          replace (page_step (page_step (memory s) (ClearVmRange vm)) (FreeVmTable vm)) with t
            by (unfold page_step; cbn [perform]; rewrite X; reflexivity) end.
        cbn [memory with_memory]. generalize a. induction (entries (vcpus l)); cbn; auto.
      * constructor; [exact A|]. constructor; [exact A|]. apply Forall_forall. intros op i.
        apply in_map_iff in i as (e & <- & _). exact Logic.I.
Qed.

Lemma run_keeps : forall ops m, PagesInv m -> PagesInv (fold_left page_step ops m).
Proof. induction ops; cbn; intros; auto. apply IHops, page_step_keeps. assumption. Qed.

Lemma life_step_pages : forall s call, PagesInv (memory s) -> PagesInv (memory (fst (step s call))).
Proof. intros s call I. destruct (step_ops s call) as (ops & -> & _). apply run_keeps, I. Qed.

Lemma run_view : forall v ops m, PagesInv m -> Forall (fun op => ~ of_vm v op) ops -> keeps_view v m (fold_left page_step ops m).
Proof.
  induction ops as [|op ops IH]; cbn; intros m I F; [apply keeps_refl|]. inversion F.
  eapply keeps_trans; [apply (step_view v m op I); assumption | apply IH; [apply page_step_keeps, I | assumption]].
Qed.

Lemma life_step_view : forall s call v l, PagesInv (memory s) -> get (lives s) v = Some l ->
  vm_state l <> PowerOff \/ is_running l = true -> keeps_view v (memory s) (memory (fst (step s call))).
Proof.
  intros s call v l I L D. destruct (step_ops s call) as (ops & -> & F). apply run_view; auto.
  eapply Forall_impl; [|exact F]. intros op A O.
  assert (X : forall w, w = v -> (exists l, get (lives s) w = Some l /\ vm_state l = PowerOff /\ idle l) -> False).
  { intros w -> (k & G & P & Id). rewrite L in G. injection G as <-. destruct D as [D|D]; [contradiction|].
    unfold is_running in D. apply existsb_exists in D as ([c x] & i & R). apply entries_get in i. cbn in R. rewrite (Id c x i) in R. discriminate. }
  destruct op; cbn in *; try contradiction; eapply X; eauto.
Qed.

Lemma plain_takes : forall v op, plain op -> ~ takes v op.
Proof. destruct op; cbn; tauto. Qed.

Lemma plain_shape : forall v ops m, Forall plain ops -> shape (fold_left page_step ops m) v = shape m v.
Proof.
  induction ops as [|op ops IH]; cbn; intros m F; auto. inversion F. rewrite IH; auto. apply step_shape, plain_takes. assumption.
Qed.

Lemma shape_some : forall m v vm, get (vms m) v = Some vm -> shape m v = Some (kind vm, cut vm).
Proof. intros m v vm G. unfold shape. rewrite G. reflexivity. Qed.

Lemma shape_back : forall m v k c, shape m v = Some (k, c) -> exists vm, get (vms m) v = Some vm /\ kind vm = k /\ cut vm = c.
Proof. intros m v k c. unfold shape. destruct (get (vms m) v) as [vm|]; intro H; [injection H as <- <-; eauto | discriminate]. Qed.

Lemma shape_none : forall m v, shape m v = None <-> get (vms m) v = None.
Proof. intros. unfold shape. destruct (get (vms m) v); split; congruence. Qed.

Lemma ordinary_keeps : forall s call s' a, LifeInv s -> transition s call = Done (s', a) -> ordinary_call call -> LifeInv s'.
Proof.
  intros s call s' a I H O. destruct (call_ops s call s' a H O) as [(ops & M & F) T].
  assert (Sh : forall v, shape (memory s') v = shape (memory s) v) by (intro; rewrite M; apply plain_shape, F).
  assert (Old : forall v vm, get (vms (memory s')) v = Some vm ->
     exists x, get (vms (memory s)) v = Some x /\ kind x = kind vm /\ cut x = cut vm)
    by (intros v vm G; apply shape_back; rewrite <- Sh; apply shape_some, G).
  destruct T as [E|v l l' L E St Im Id].
  - constructor; rewrite E.
    + intro v. rewrite <- shape_none, Sh, shape_none. apply I.
    + intros v vm l G L C. apply Old in G as (x & G & _ & Cx). apply (off_first _ I v x l G L). congruence.
    + intros v vm l G L K S. apply Old in G as (x & G & Kx & _). apply (checked _ I v x l G L); congruence.
    + apply (runs_checked _ I).
  - constructor; rewrite E.
    + intro w. rewrite <- shape_none, Sh, shape_none, get_set. destruct (N.eqb_spec v w) as [X|]; [subst w | apply I].
      rewrite <- (same_ids _ I v), L. split; discriminate.
    + intros w vm k G Lk C. apply Old in G as (x & G & _ & Cx). rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|].
      * subst w. injection Lk as <-. destruct (off_first _ I v x l G L) as [P Q]; [congruence|].
        assert (P' : vm_state l' = PowerOff) by (destruct St as [St|[St|(St & _)]]; congruence).
        split; [exact P'|]. apply Id; [congruence | exact Q].
      * apply (off_first _ I w x k G Lk). congruence.
    + intros w vm k G Lk K S. apply Old in G as (x & G & Kx & _). rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|].
      * subst w. injection Lk as <-. rewrite (Im S).
        destruct St as [St|[St|(_ & _ & _ & _ & Y)]]; [apply (checked _ I v x l G L); congruence | congruence | apply (Y x G); congruence].
      * apply (checked _ I w x k G Lk); congruence.
    + intros w k Lk R. rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|]; [|exact (runs_checked _ I w k Lk R)].
      subst w. injection Lk as <-. apply Id; [congruence|].
      destruct St as [St|[St|(_ & St & _)]]; [|congruence..]. apply (runs_checked _ I v l L). congruence.
Qed.

Definition same_vm_kind (m m' : State) (v : N) : Prop := option_map fst (shape m' v) = option_map fst (shape m v).

Lemma clear_page_kind : forall m w g v, same_vm_kind m (clear_vm_page m w g) v.
Proof.
  intros m w g v. unfold same_vm_kind. destruct (N.eq_dec w v) as [<-|D]; [|rewrite (clear_page_shape m w g v D); reflexivity].
  unfold clear_vm_page. destruct (get (vms m) w) as [vm|] eqn:G; [|reflexivity].
  set (s1 := set_vm _ _ _). assert (S : option_map fst (shape s1 w) = option_map fst (shape m w))
    by (unfold shape; cbn; rewrite get_set, N.eqb_refl, G; reflexivity).
  destruct (get (table vm) g) as [[p|p]|]; auto. destruct (kind vm); auto.
  rewrite <- S. f_equal. apply shape_vms. apply lend_less_fields.
Qed.

Lemma clear_range_kind : forall m w v, same_vm_kind m (clear_vm_range m w) v.
Proof.
  intros m w v. unfold clear_vm_range. destruct (get (vms m) w) as [vm|] eqn:G; [|reflexivity].
  assert (S : same_vm_kind m (cut_vm m w) v).
  { unfold same_vm_kind, cut_vm, shape. rewrite G. cbn. rewrite get_set. destruct (N.eqb_spec w v) as [X|]; [subst v; rewrite G|]; reflexivity. }
  revert S. generalize (cut_vm m w). induction (entries (table vm)) as [|e l IH]; cbn; intros t S; auto.
  apply IH. unfold same_vm_kind in *. rewrite <- S. apply clear_page_kind.
Qed.

Lemma reclaim_keeps : forall s v s' a, LifeInv s -> reclaim_vm s v = Done (s', a) -> LifeInv s'.
Proof.
  intros s v s' a I H. unfold reclaim_vm in H. pieces. found. destruct In as [<-|[]]. apply idle_ok in E0.
  set (m := clear_vm_range _ _).
  assert (Sh : forall w, w <> v -> shape m w = shape (memory s) w)
    by (intros w D; apply (step_shape (memory s) (ClearVmRange v) w); cbn; congruence).
  assert (Kd : forall w, same_vm_kind (memory s) m w) by (intro; apply clear_range_kind).
  assert (Old : forall w vm, get (vms m) w = Some vm -> exists y, get (vms (memory s)) w = Some y /\ kind y = kind vm).
  { intros w vm G. specialize (Kd w). unfold same_vm_kind, shape in Kd. rewrite G in Kd. cbn in Kd.
    destruct (get (vms (memory s)) w) as [y|]; [injection Kd as Kd; eauto | discriminate]. }
  constructor; cbn [lives memory with_memory].
  - intro w. rewrite (same_ids _ I w). specialize (Kd w). unfold same_vm_kind, shape in Kd.
    destruct (get (vms m) w), (get (vms (memory s)) w); split; congruence || discriminate.
  - intros w vm k G Lk C. destruct (N.eq_dec w v) as [->|D].
    + rewrite L in Lk. injection Lk as <-. auto.
    + pose proof (shape_some _ _ _ G) as X. rewrite (Sh w D), C in X. apply shape_back in X as (y & Gy & _ & Cy).
      exact (off_first _ I w y k Gy Lk Cy).
  - intros w vm k G Lk K S. apply Old in G as (y & G & Ky). apply (checked _ I w y k G Lk); congruence.
  - apply (runs_checked _ I).
Qed.

Lemma register_keeps : forall s protected bits root s' a, LifeInv s -> register_vm s protected bits root = Done (s', a) -> LifeInv s'.
Proof.
  intros s protected bits root s' a I H. unfold register_vm in H. destruct (free_id s) as [v|] eqn:Fr; [|discriminate].
  pieces. set (k := if protected then Protected else Ordinary) in *.
  match goal with X : register_vm_table _ _ _ _ _ = Done ?t |- _ => rename X into Rg; set (m := t) in *; clearbody m end.
  assert (Nv : get (vms (memory s)) v = None /\ get (lives s) v = None).
  { unfold free_id in Fr. apply List.find_some in Fr as [_ X].
    destruct (get (vms (memory s)) v); [discriminate|]. destruct (get (lives s) v); [discriminate | auto]. }
  destruct Nv as [Nm Nl].
  assert (Sh : forall w, w <> v -> shape m w = shape (memory s) w).
  { intros w D. pose proof (step_shape (memory s) (RegisterVmTable v k bits root) w) as X. unfold page_step in X. cbn [perform takes] in X.
    rewrite Rg in X. apply X. congruence. }
  assert (Sv : shape m v = Some (k, false)).
  { unfold register_vm_table in Rg. rewrite Nm in Rg. checks. rewrite (donate_shape _ _ _ _ Rg). unfold shape. cbn.
    rewrite get_set, N.eqb_refl. reflexivity. }
  assert (Old : forall w vm, w <> v -> get (vms m) w = Some vm -> exists y, get (vms (memory s)) w = Some y /\ kind y = kind vm /\ cut y = cut vm)
    by (intros w vm D G; apply shape_back; rewrite <- (Sh w D); apply shape_some, G).
  constructor; cbn [lives memory with_memory set_life].
  - intro w. rewrite get_set. destruct (N.eqb_spec v w) as [X|D].
    + subst w. rewrite <- shape_none, Sv. split; discriminate.
    + rewrite <- shape_none, (Sh w) by congruence. rewrite shape_none. apply I.
  - intros w vm l G Lk C. rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|D].
    + subst w. apply shape_some in G. rewrite Sv in G. congruence.
    + apply Old in G as (y & G & _ & Cy); [|congruence]. apply (off_first _ I w y l G Lk). congruence.
  - intros w vm l G Lk K S. rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|D].
    + injection Lk as <-. discriminate.
    + apply Old in G as (y & G & Ky & _); [|congruence]. apply (checked _ I w y l G Lk); congruence.
  - intros w l Lk R. rewrite get_set in Lk. destruct (N.eqb_spec v w) as [X|D]; [|exact (runs_checked _ I w l Lk R)].
    injection Lk as <-. intros c x G. cbn in G. rewrite get_empty in G. discriminate.
Qed.

Lemma drops_shape : forall (l : list (N * Vcpu)) m w,
  shape (fold_left (fun m e => let_go m (mailbox (snd e))) l m) w = shape m w.
Proof.
  induction l as [|e l IH]; cbn; intros m w; auto. rewrite IH.
  exact (step_shape m (DropMailbox (mailbox (snd e))) w (fun x => x)).
Qed.

Lemma destroy_keeps : forall s v s' a, LifeInv s -> destroy_vm s v = Done (s', a) -> LifeInv s'.
Proof.
  intros s v s' a I H. unfold destroy_vm in H. pieces. found.
  match goal with X : free_vm_table _ _ = Done ?t |- _ => rename X into Fr; set (m := t) in * end. clearbody m.
  set (last := fold_left _ _ _).
  assert (Sl : forall w, shape last w = shape m w) by (intro; apply (drops_shape (entries (vcpus l)) m w)).
  assert (Sh : forall w, w <> v -> shape last w = shape (memory s) w).
  { intros w D. rewrite Sl. pose proof (step_shape (clear_vm_range (memory s) v) (FreeVmTable v) w) as X.
    unfold page_step in X. cbn [perform takes] in X. rewrite Fr in X. rewrite X by congruence.
    apply (step_shape (memory s) (ClearVmRange v) w). cbn. congruence. }
  assert (Sv : shape last v = None).
  { rewrite Sl. unfold free_vm_table in Fr. checks. unfold shape. cbn. rewrite get_remove, N.eqb_refl. reflexivity. }
  assert (Old : forall w vm, get (vms last) w = Some vm -> w <> v /\ exists y, get (vms (memory s)) w = Some y /\ kind y = kind vm /\ cut y = cut vm).
  { intros w vm G. assert (D : w <> v) by (intros ->; apply shape_some in G; congruence). split; auto.
    apply shape_back. rewrite <- (Sh w D). apply shape_some, G. }
  constructor; cbn [lives memory].
  - intro w. rewrite get_remove. destruct (N.eqb_spec v w) as [X|D].
    + subst w. rewrite <- shape_none, Sv. tauto.
    + rewrite <- shape_none, (Sh w) by congruence. rewrite shape_none. apply I.
  - intros w vm k G Lk C. apply Old in G as (D & y & G & _ & Cy). rewrite get_remove in Lk.
    destruct (N.eqb_spec v w); [discriminate|]. apply (off_first _ I w y k G Lk). congruence.
  - intros w vm k G Lk K S. apply Old in G as (D & y & G & Ky & _). rewrite get_remove in Lk.
    destruct (N.eqb_spec v w); [discriminate|]. apply (checked _ I w y k G Lk); congruence.
  - intros w k Lk R. rewrite get_remove in Lk. destruct (N.eqb_spec v w); [discriminate|]. exact (runs_checked _ I w k Lk R).
Qed.

Lemma life_step_keeps : forall s call, LifeInv s -> LifeInv (fst (step s call)).
Proof.
  intros s call I. unfold step. destruct (transition s call) as [[s' a]|] eqn:H; [|exact I]. cbn [fst].
  assert (O : ordinary_call call \/ ~ ordinary_call call) by (destruct call; cbn; auto). destruct O as [O|O].
  - exact (ordinary_keeps s call s' a I H O).
  - destruct call; cbn [transition ordinary_call] in *; try (destruct (O Logic.I)).
    + exact (register_keeps _ _ _ _ _ _ I H).
    + exact (reclaim_keeps _ _ _ _ I H).
    + exact (destroy_keeps _ _ _ _ I H).
Qed.

Lemma boot_lives_inv : forall r w b g, LifeInv (boot_lives r w b g).
Proof. intros. constructor; cbn; intros; rewrite ?get_empty in *; try discriminate. tauto. Qed.

(* A vCPU's registers are not in any call. *)
Lemma life_step_registers : forall s call, registers (fst (step s call)) = registers s.
Proof.
  intros s call. unfold step. destruct (transition s call) as [[s' a]|] eqn:H; [|reflexivity]. cbn [fst].
  destruct call; cbn [transition] in H;
    unfold register_vm, register_vcpu, donate_pool, set_boot_info, remap_image_page, verify_vm, map_memory, unmap_memory, map_io,
      set_cntvoff, activate, power_off_vm, reclaim_vm, destroy_vm, started, leave, cpu_off, change_vcpu, cpu_on, affinity_info, many in H;
    pieces; reflexivity.
Qed.
